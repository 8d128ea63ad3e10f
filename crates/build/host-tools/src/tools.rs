//! The table of tools: purpose, oldest version, probe and Debian package of each.
//!
//! The toolchain check and the installation use the same table.

/// The purpose of a tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Fetching sources and compiling a kernel.
    Build,
    /// Compiling a kernel with drivers in Rust.
    Rust,
    /// Debian packages of the kernel.
    Package,
    /// Disk images.
    Image,
    /// Booting them under QEMU.
    Machine,
}

impl Purpose {
    /// All purposes.
    pub const ALL: [Self; 5] = [Self::Build, Self::Rust, Self::Package, Self::Image, Self::Machine];
}

/// A program, library or file that has to be on the machine.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    /// Its name in messages.
    pub name: &'static str,
    /// Its purpose.
    pub purpose: Purpose,
    /// Its task there, as a verb phrase.
    pub why: &'static str,
    /// The Debian package that contains it; none if no package is suitable.
    pub debian: Option<&'static str>,
    /// The oldest suitable version.
    pub min: Option<&'static str>,
    /// How it is found.
    pub(crate) probe: Probe,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Probe {
    /// A program on the PATH that prints its version when called with these arguments.
    Program(&'static str, &'static [&'static str]),
    /// A program on the PATH, in any version.
    Command(&'static str),
    /// A header and a library, found by building a C program with them.
    Library { header: &'static str, library: &'static str },
    /// A file.
    File(&'static str),
    /// The libclang that bindgen loads.
    Libclang,
    /// The source of rustc's standard library.
    RustSrc,
    /// gcc or clang.
    Compiler,
}

const fn tool(
    purpose: Purpose,
    name: &'static str,
    debian: &'static str,
    probe: Probe,
    why: &'static str,
) -> Tool {
    Tool { name, purpose, why, debian: Some(debian), min: None, probe }
}

const fn at_least(min: &'static str, tool: Tool) -> Tool {
    Tool { min: Some(min), ..tool }
}

/// The table.
pub static TOOLS: &[Tool] = {
    use Probe::{Command, Compiler, File, Libclang, Library, Program, RustSrc};
    use Purpose::{Build, Image, Machine, Package, Rust};
    const V: &[&str] = &["--version"];
    &[
        at_least("8.1", tool(Build, "gcc or clang", "gcc", Compiler, "compiles the kernel")),
        at_least("4.0", tool(Build, "make", "make", Program("make", V), "runs the kernel's build")),
        tool(Build, "ld", "binutils", Command("ld"), "links the kernel"),
        at_least("2.5.35", tool(Build, "flex", "flex", Program("flex", V), "makes Kconfig's scanner")),
        at_least("2.0", tool(Build, "bison", "bison", Program("bison", V), "makes Kconfig's parser")),
        tool(Build, "bc", "bc", Command("bc"), "computes time constants"),
        tool(
            Build,
            "libelf",
            "libelf-dev",
            Library { header: "gelf.h", library: "elf" },
            "objtool reads objects with it",
        ),
        tool(Build, "perl", "perl", Command("perl"), "runs scripts of the build"),
        tool(Build, "python3", "python3", Command("python3"), "runs scripts of the build"),
        tool(Build, "git", "git", Command("git"), "applies patches"),
        tool(Build, "curl", "curl", Command("curl"), "fetches tarballs from kernel.org"),
        tool(Build, "xz", "xz-utils", Command("xz"), "compresses the kernel image"),
        tool(Build, "zstd", "zstd", Command("zstd"), "compresses the kernel image"),
        tool(Build, "cpio", "cpio", Command("cpio"), "packs initramfs archives"),
        tool(Build, "depmod", "kmod", Command("depmod"), "indexes the modules"),
        at_least(
            "1.85",
            Tool {
                name: "rustc",
                purpose: Rust,
                why: "compiles the drivers in Rust",
                // Debian's may be older than the compiler that built this program, which came from rustup.
                debian: None,
                min: None,
                probe: Program("rustc", V),
            },
        ),
        at_least(
            "0.71.1",
            tool(Rust, "bindgen", "bindgen", Program("bindgen", V), "translates C headers for Rust drivers"),
        ),
        at_least(
            "17.0.1",
            tool(Rust, "libclang", "libclang-19-dev", Libclang, "parses C headers for bindgen"),
        ),
        Tool {
            name: "rust-src",
            purpose: Rust,
            why: "the kernel compiles its own core library from it",
            debian: None,
            min: None,
            probe: RustSrc,
        },
        tool(Package, "dpkg-buildpackage", "dpkg-dev", Command("dpkg-buildpackage"), "drives bindeb-pkg"),
        tool(Package, "dh", "debhelper", Command("dh"), "lays the package out"),
        tool(Package, "fakeroot", "fakeroot", Command("fakeroot"), "makes root-owned files without root"),
        tool(Package, "rsync", "rsync", Command("rsync"), "copies kernel headers"),
        tool(
            Package,
            "libssl",
            "libssl-dev",
            Library { header: "openssl/opensslv.h", library: "crypto" },
            "builds the signing tool that the headers package carries",
        ),
        tool(Image, "mmdebstrap", "mmdebstrap", Command("mmdebstrap"), "makes Debian root file systems"),
        tool(Image, "fakeroot", "fakeroot", Command("fakeroot"), "makes root-owned files without root"),
        tool(Image, "mtools", "mtools", Command("mcopy"), "writes the boot partition's files"),
        tool(Image, "syslinux", "syslinux", Command("syslinux"), "installs the boot loader into an image"),
        tool(
            Image,
            "syslinux-common",
            "syslinux-common",
            File("/usr/lib/syslinux/modules/bios/ldlinux.c32"),
            "is the boot loader",
        ),
        tool(Image, "mke2fs", "e2fsprogs", Command("mke2fs"), "makes ext4 file systems from directories"),
        tool(Image, "sfdisk", "fdisk", Command("sfdisk"), "shows and checks partition tables"),
        tool(Image, "qemu-img", "qemu-utils", Command("qemu-img"), "converts images to qcow2"),
        tool(Image, "bsdcat", "libarchive-tools", Command("bsdcat"), "decompresses root file systems"),
        tool(Image, "xorriso", "xorriso", Command("xorriso"), "makes seeds for cloud-init"),
        tool(Image, "busybox", "busybox-static", Command("busybox"), "is the minimal guest's user space"),
        at_least(
            "10.0",
            tool(
                Machine,
                "qemu-system-x86_64",
                "qemu-system-x86",
                Program("qemu-system-x86_64", V),
                "boots images; nested virtualisation is broken before version 10",
            ),
        ),
        tool(Machine, "SeaBIOS", "seabios", File("/usr/share/seabios/bios-256k.bin"), "is the firmware"),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_can_be_asked_for_once_per_purpose() {
        let mut seen = std::collections::BTreeSet::new();
        for tool in TOOLS {
            assert!(seen.insert((tool.purpose, tool.name)), "{} twice", tool.name);
        }
    }
}
