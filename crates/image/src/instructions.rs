//! How to run an image on OpenBSD, in the words of vm.conf(5) and vmctl(8).

use crate::{Image, settings::Format};

/// Memory of the VM that is proposed; vmd's own default.
const MEMORY: &str = "512M";

/// The text that a user reads after an image was made.
pub(crate) fn text(image: &Image) -> String {
    let file = image.path.file_name().unwrap_or_default().to_string_lossy();
    let path = image.path.display();
    let name = &image.vm;
    let format = match image.format {
        Format::Raw => "",
        Format::Qcow2 => " format qcow2",
    };
    let prefix = match image.format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
    };
    let copy = match image.format {
        Format::Raw => format!(
            "# Copy it to the OpenBSD host; rsync -S keeps the holes, gzip copies them as next to nothing:\n\
             rsync -S {path} root@openbsd:/var/vmm/\n\
             gzip -c {path} | ssh root@openbsd 'gunzip > /var/vmm/{file}'\n"
        ),
        Format::Qcow2 => format!("# Copy it to the OpenBSD host:\nscp {path} root@openbsd:/var/vmm/\n"),
    };
    let (other, from) = match image.format {
        Format::Raw => ("qcow2", format!("raw:/var/vmm/{file}")),
        Format::Qcow2 => ("img", format!("qcow2:/var/vmm/{file}")),
    };
    let stem = image.path.file_stem().unwrap_or_default().to_string_lossy();
    let converted = if other == "img" {
        format!("raw:/var/vmm/{stem}.img")
    } else {
        format!("qcow2:/var/vmm/{stem}.qcow2")
    };
    format!(
        "{copy}\
         # Convert it there, if the other format suits you better:\n\
         vmctl create -i {from} {converted}\n\
         \n\
         # /etc/vm.conf:\n\
         vm \"{name}\" {{\n\
         \tmemory {MEMORY}\n\
         \tdisk \"/var/vmm/{file}\"{format}\n\
         \tlocal interface\n\
         }}\n\
         \n\
         # Once per host: firmware and daemon. Then, with the stanza in place:\n\
         fw_update vmm && rcctl enable vmd && rcctl start vmd\n\
         vmctl reload\n\
         vmctl start -c {name}\n\
         \n\
         # Or without the stanza:\n\
         vmctl start -c -L -m {MEMORY} -d {prefix}:/var/vmm/{file} {name}\n"
    )
}
