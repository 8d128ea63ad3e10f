//! Firewalls, VPNs and container networks as people set them up, with Debian's programs, on the packaged kernel.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use guest_tests::{
    run::{Run, machine, vmmlinux},
    shell::Shell,
};
use rstest::rstest;

/// Debian's packages of the programs.
const PACKAGES: &str = "systemd-sysv,dbus,udev,kmod,procps,iproute2,login,passwd,iptables,nftables,ipset,ufw,ipvsadm,conntrack,\
    wireguard-tools,cryptsetup-bin,lvm2,mdadm,btrfs-progs,xfsprogs,e2fsprogs";

/// Rules of iptables, each alone, in IPv4; the table is the first word.
const IPTABLES: &[&str] = &[
    "filter INPUT -p tcp --dport 22 -m state --state NEW -m recent --set --name ssh",
    "filter INPUT -p tcp --dport 22 -m recent --update --seconds 60 --hitcount 4 --name ssh -j REJECT --reject-with tcp-reset",
    "filter INPUT -m limit --limit 3/min -j LOG --log-prefix drop:",
    "filter INPUT -j NFLOG --nflog-group 1",
    "filter OUTPUT -m owner --uid-owner 0 -j ACCEPT",
    "filter INPUT -p tcp -m hashlimit --hashlimit-above 10/sec --hashlimit-mode srcip --hashlimit-name h -j DROP",
    "filter INPUT -m string --string x --algo bm -j DROP",
    "filter INPUT -m set --match-set bad src -j DROP",
    "filter INPUT -p tcp -m multiport --dports 80,443 -m comment --comment web -j ACCEPT",
    "filter FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
    "filter FORWARD -m physdev --physdev-is-bridged -j ACCEPT",
    "nat PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080",
    "nat POSTROUTING -m addrtype ! --dst-type LOCAL -j MASQUERADE",
    "mangle PREROUTING -j CONNMARK --restore-mark",
    "mangle PREROUTING -p tcp -m socket --transparent -j MARK --set-mark 1",
    "raw PREROUTING -p udp --dport 69 -j CT --helper tftp",
    "raw PREROUTING -i lo -j CT --notrack",
];

/// Rules of nft, each in a chain of a table of its family: family, hook, rule.
const NFT: &[(&str, &str, &str)] = &[
    ("inet", "input", "log prefix \\\"drop \\\" limit rate 3/minute"),
    ("inet", "input", "log group 1"),
    ("inet", "input", "meta mark set numgen inc mod 2"),
    ("inet", "input", "meta mark set jhash ip saddr mod 4"),
    ("inet", "input", "queue num 1 bypass"),
    ("inet", "input", "quota over 10 mbytes drop"),
    ("inet", "input", "tcp dport 80 synproxy mss 1460 wscale 7"),
    ("inet", "input", "ct count over 10 reject"),
    ("inet", "forward", "tcp flags syn tcp option maxseg size set rt mtu"),
    ("ip", "prerouting", "tcp dport 80 tproxy to 127.0.0.1:8080"),
    ("ip", "prerouting", "fib daddr type local ct mark set 1"),
    ("arp", "input", "arp operation request accept"),
];

/// A rule set as kube-proxy restores it.
const KUBE_PROXY: &str = "*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SEP-A - [0:0]
:KUBE-SEP-B - [0:0]
-A PREROUTING -m comment --comment services -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-SERVICES -d 10.43.0.1/32 -p tcp -m comment --comment api -m tcp --dport 443 -j KUBE-SVC-A
-A KUBE-SVC-A -m recent --name KUBE-SEP-A --rcheck --seconds 10800 --reap --rsource -j KUBE-SEP-A
-A KUBE-SVC-A -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-A
-A KUBE-SVC-A -j KUBE-SEP-B
-A KUBE-SEP-A -p tcp -m recent --name KUBE-SEP-A --set --rsource -m tcp -j DNAT --to-destination 10.42.0.2:6443
-A KUBE-SEP-B -p tcp -m tcp -j DNAT --to-destination 10.42.0.3:6443
COMMIT
*filter
:KUBE-FORWARD - [0:0]
-A FORWARD -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -p tcp -j REJECT --reject-with icmp-port-unreachable
COMMIT
";

/// What people run, each alone: it succeeds.
const COMMANDS: &[&str] = &[
    "ufw --force enable && ufw limit ssh && ufw status | grep -q active; ufw --force disable",
    "iptables-restore --test </root/kube && iptables-restore </root/kube && iptables -t nat -F",
    "iptables-legacy-restore --test </root/kube",
    "nft add table netdev n && nft add chain netdev n c '{ type filter hook ingress device lo priority 0; }' && nft delete table netdev n",
    "nft add table inet f && nft add flowtable inet f t '{ hook ingress priority 0; devices = { lo }; }' && nft delete table inet f",
    "nft add table ip h && nft add ct helper ip h ftp '{ type \"ftp\" protocol tcp; }' && nft delete table ip h",
    "conntrack -L",
    "ipvsadm -A -t 10.0.0.1:80 -s rr && ipvsadm -a -t 10.0.0.1:80 -r 10.0.0.2 -m && ipvsadm -C",
    "wg-quick up wg0 && ip rule | grep -q fwmark && wg-quick down wg0",
    "ip link add link $(ip -o link | sed -n 's/^2: \\([^:]*\\):.*/\\1/p') name i0 type ipvlan mode l2 && ip link del i0",
    "ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 1 mode transport aead 'rfc4106(gcm(aes))' 0x$(printf '%040d' 1) 128",
    "iptables -A INPUT -p udp --dport 4789 -m bpf --bytecode '1,6 0 0 1' -m policy --dir in --pol ipsec -j ACCEPT && iptables -F INPUT",
    "tc qdisc add dev lo root tbf rate 1mbit burst 10k latency 50ms && tc qdisc del dev lo root",
    "systemd-run --wait -q -p IOReadBandwidthMax='/dev/vda 1M' true",
    "modprobe dm-crypt && cryptsetup benchmark -c aes-xts -s 512",
    "for m in xfs btrfs jfs f2fs raid1 raid456 dm-thin-pool; do modprobe $m || exit 1; done",
];

/// An image of Debian with the programs and the packaged kernel.
fn image(dir: &Path, kernel: &Path) -> PathBuf {
    let (archive, image) = (dir.join("rootfs.tar"), dir.join("disk.img"));
    let files = "printf '[Interface]\\nPrivateKey = %s\\nAddress = 10.9.0.1/32\\n[Peer]\\nPublicKey = %s\\nAllowedIPs = 0.0.0.0/0\\n' \
        $(wg genkey) $(wg genkey | wg pubkey) >/etc/wireguard/wg0.conf; passwd -d root";
    let made = Command::new("mmdebstrap")
        .args(["--variant=apt", "--format=tar", "--architectures=amd64"])
        .arg(format!("--include={PACKAGES}"))
        .args(["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"])
        .arg(format!("--customize-hook=chroot \"$1\" sh -c \"{}\"", files.replace('$', "\\$")))
        .args(["trixie".as_ref(), archive.as_os_str()])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let made = Command::new(vmmlinux())
        .args(["image", "--size", "3G", "--hostname", "guest", "--rootfs"])
        .arg(format!("tar:{}", archive.display()))
        .arg("--output")
        .args([image.as_path(), kernel])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    image
}

/// Every command that a guest is to be able to run.
fn commands() -> Vec<String> {
    let mut commands = vec!["ipset create bad hash:ip".to_owned()];
    for rule in IPTABLES {
        let (table, rule) = rule.split_once(' ').unwrap();
        commands.push(format!("iptables -t {table} -A {rule} && iptables -t {table} -D {rule}"));
    }
    for (family, hook, rule) in NFT {
        commands.push(format!(
            "nft add table {family} t && nft add chain {family} t c '{{ type filter hook {hook} priority 0; }}' && \
             nft \"add rule {family} t c {rule}\" && nft delete table {family} t"
        ));
    }
    commands.extend(COMMANDS.iter().map(|&command| command.to_owned()));
    commands
}

#[rstest]
#[ignore = "installs a Debian and boots it in the helper VM: make long-test; VMMLINUX_TEST_PACKAGED names a packaged kernel's build"]
fn long_firewalls_and_vpns_run(#[values("7.8", "8.0")] host: &str) {
    let kernel = env::var_os("VMMLINUX_TEST_PACKAGED").expect("VMMLINUX_TEST_PACKAGED names a build");
    let dir = tempfile::tempdir().unwrap();
    let disk = image(dir.path(), Path::new(&kernel));
    let mut machine = machine("firewall", "60m");
    machine.args(["-i", "--host", host]).arg(&disk);
    let mut run = Run::start("firewall", machine);
    let mut shell = Shell::log_in(&mut run, "guest");
    for line in KUBE_PROXY.lines() {
        shell.ask(&mut run, &format!("echo '{line}' >>/root/kube"));
    }
    let mut failed = Vec::new();
    for command in commands() {
        let answer =
            shell.ask(&mut run, &format!("( {command} ) >/tmp/said 2>&1 && echo well || cat /tmp/said"));
        if answer != "well" {
            failed.push(format!("{command}: {answer}"));
        }
    }
    run.send(b"poweroff\n");
    run.end().assert_status(0);
    assert!(failed.is_empty(), "{failed:#?}");
}
