//! How to run an image on OpenBSD, in the words of vm.conf(5) and vmctl(8).

use crate::{
    Image,
    settings::{Format, Net},
};

/// Memory of the VM that is proposed; vmd's own default.
const MEMORY: &str = "512M";
/// Where images go on the OpenBSD host.
const HOME: &str = "/var/vmm";

/// The text that a user reads after an image was made.
pub(crate) fn text(image: &Image) -> String {
    let path = image.path.display();
    let file = image.path.file_name().unwrap_or_default().to_string_lossy();
    let stem = image.path.file_stem().unwrap_or_default().to_string_lossy();
    let name = &image.vm;

    let (disk, this, other, copy) = match image.format {
        Format::Raw => (
            String::new(),
            format!("raw:{HOME}/{file}"),
            format!("qcow2:{HOME}/{stem}.qcow2"),
            format!(
                "# Compressed, the holes weigh nothing; it arrives in full. --format qcow2 makes a file that stays small.\n\
                 gzip -c {path} | ssh root@openbsd 'mkdir -p {HOME} && gunzip > {HOME}/{file}'\n"
            ),
        ),
        Format::Qcow2 => (
            " format qcow2".to_owned(),
            format!("qcow2:{HOME}/{file}"),
            format!("raw:{HOME}/{stem}.img"),
            format!("ssh root@openbsd mkdir -p {HOME}\nscp {path} root@openbsd:{HOME}/\n"),
        ),
    };
    let (interface, flag, network) = match image.net {
        Net::Dhcp => (
            "\tlocal interface\n",
            " -L",
            "# vmd answers the guest's DHCP itself. To let it out, forward and translate on the host:\n\
             sysctl net.inet.ip.forwarding=1\n\
             echo 'pass out on egress from 100.64.0.0/10 to any nat-to (egress)' >> /etc/pf.conf && pfctl -f /etc/pf.conf\n\n",
        ),
        Net::Static { .. } => (
            "\tinterface { switch \"uplink\" }\n",
            " -n uplink",
            "# The guest's address belongs to the network of a switch; vm.conf(5) shows how to declare \"uplink\".\n\n",
        ),
        Net::None => ("", "", ""),
    };
    format!(
        "# To the OpenBSD host:\n\
         {copy}\n\
         # Everything else on that host, as root. Once:\n\
         fw_update vmm\n\
         rcctl enable vmd && rcctl start vmd\n\
         \n\
         {network}\
         # In /etc/vm.conf:\n\
         vm \"{name}\" {{\n\
         \tdisable\n\
         \tmemory {MEMORY}\n\
         \tdisk \"{HOME}/{file}\"{disk}\n\
         {interface}\
         }}\n\
         \n\
         # Then:\n\
         vmctl reload\n\
         vmctl start -c {name}\n\
         \n\
         # Or without the stanza:\n\
         vmctl start -c{flag} -m {MEMORY} -d {this} {name}\n\
         \n\
         # The other format, should it suit you better:\n\
         vmctl create -i {this} {other}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instructions(format: Format, net: &str) -> String {
        text(&Image {
            path: format!("out/7.3/minimal.{}", format.extension()).into(),
            format,
            size: "4G".parse().unwrap(),
            allocated: 0,
            command_line: String::new(),
            vm: "vm1".into(),
            net: net.parse().unwrap(),
        })
    }

    #[test]
    fn the_stanza_and_the_command_agree_with_the_image() {
        let raw = instructions(Format::Raw, "dhcp");
        let stanza =
            "vm \"vm1\" {\n\tdisable\n\tmemory 512M\n\tdisk \"/var/vmm/minimal.img\"\n\tlocal interface\n}\n";
        assert!(raw.contains(stanza), "{raw}");
        assert!(raw.contains("\nvmctl start -c -L -m 512M -d raw:/var/vmm/minimal.img vm1\n"), "{raw}");
        assert!(
            raw.contains("\nvmctl create -i raw:/var/vmm/minimal.img qcow2:/var/vmm/minimal.qcow2\n"),
            "{raw}"
        );

        let qcow2 = instructions(Format::Qcow2, "10.0.0.5/24,10.0.0.1");
        assert!(qcow2.contains(
            "\tdisk \"/var/vmm/minimal.qcow2\" format qcow2\n\tinterface { switch \"uplink\" }\n}\n"
        ));
        assert!(
            qcow2.contains("\nvmctl start -c -n uplink -m 512M -d qcow2:/var/vmm/minimal.qcow2 vm1\n"),
            "{qcow2}"
        );

        let alone = instructions(Format::Raw, "none");
        assert!(!alone.contains("interface") && !alone.contains("pf.conf"), "{alone}");
    }
}
