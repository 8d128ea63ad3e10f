//! Images that qemu-img makes, and headers written by hand, judged.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Command,
};

use disk_image::{Content, Severity, Verdict, judge};
use rstest::rstest;
use tempfile::TempDir;
use vmd_release::DiskFormat;

/// A directory of images.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs qemu-img in the directory.
    fn qemu_img(&self, arguments: &str) {
        let words = arguments.split_whitespace();
        let output = Command::new("qemu-img").args(words).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "qemu-img {arguments}: {output:?}");
    }

    /// A raw disk of 1 MiB with a boot sector and text that compresses.
    fn raw(&self, name: &str) {
        let mut disk = vec![b'x'; 1 << 20];
        disk[..510].fill(0x90);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        fs::write(self.path(name), disk).unwrap();
    }

    fn judge(&self, name: &str) -> Verdict {
        judge(&self.path(name), None, true).unwrap()
    }
}

/// The only finding's message, effect and help.
fn only(verdict: &Verdict) -> (&str, &str, &str) {
    let [finding] = &verdict.findings[..] else { panic!("{verdict:?}") };
    (&finding.message, &finding.effect, &finding.help)
}

fn change(path: &Path, offset: u64, bytes: &[u8]) {
    let mut file = File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(bytes).unwrap();
}

#[rstest]
#[case::plain("convert -O qcow2 raw.img x.qcow2")]
#[case::small_clusters("convert -O qcow2 -o cluster_size=512 raw.img x.qcow2")]
#[case::large_clusters("convert -O qcow2 -o cluster_size=2M raw.img x.qcow2")]
#[case::preallocated("convert -O qcow2 -o preallocation=full raw.img x.qcow2")]
fn an_image_that_vmd_takes_has_no_findings(#[case] make: &str) {
    let place = Place::new();
    place.raw("raw.img");
    place.qemu_img(make);

    let verdict = place.judge("x.qcow2");

    assert_eq!(verdict.content, Content::Qcow2);
    assert_eq!(verdict.findings, []);
}

#[rstest]
#[case::deflate("convert -c -O qcow2 raw.img x.qcow2", &["16 compressed clusters"])]
#[case::small("convert -c -O qcow2 -o cluster_size=4k raw.img x.qcow2", &["256 compressed clusters"])]
#[case::version_2("convert -O qcow2 -o compat=0.10 raw.img x.qcow2", &["version 2"])]
#[case::extended("convert -O qcow2 -o extended_l2=on raw.img x.qcow2", &["extended L2"])]
#[case::refcounts("convert -O qcow2 -o refcount_bits=1 raw.img x.qcow2", &["refcounts of 1 bits"])]
#[case::data_file("convert -O qcow2 -o data_file=data.img raw.img x.qcow2", &["in another file"])]
#[case::encrypted(
    "create --object secret,id=s,data=abc -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 x.qcow2 1M",
    &["encrypted"]
)]
fn an_image_that_vmd_does_not_take_is_refused(#[case] make: &str, #[case] expected: &[&str]) {
    let place = Place::new();
    place.raw("raw.img");
    place.qemu_img(make);

    let verdict = place.judge("x.qcow2");

    let errors: Vec<_> = verdict.findings.iter().filter(|found| found.severity == Severity::Error).collect();
    assert_eq!(errors.len(), expected.len(), "{verdict:?}");
    for (error, expected) in errors.iter().zip(expected) {
        assert!(error.message.contains(expected), "{error:?}");
        assert!(error.help.contains("qemu-img convert -f qcow2 -O qcow2 "), "{error:?}");
    }
}

#[test]
fn zstd_and_its_clusters_are_both_told() {
    let place = Place::new();
    place.raw("raw.img");
    place.qemu_img("convert -c -O qcow2 -o compression_type=zstd raw.img x.qcow2");

    let messages: Vec<_> = place.judge("x.qcow2").findings.into_iter().map(|found| found.message).collect();

    assert!(messages[0].contains("zstd") && messages[1].contains("16 compressed"), "{messages:?}");
}

#[test]
fn the_recommended_command_makes_an_image_that_vmd_takes() {
    let place = Place::new();
    place.raw("raw.img");
    place.qemu_img("convert -c -O qcow2 raw.img x.qcow2");
    let verdict = place.judge("x.qcow2");
    let (_, _, help) = only(&verdict);

    let command = help.split_once(": ").unwrap().1;
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");

    assert_eq!(place.judge("x-vmd.qcow2").findings, []);
}

#[test]
fn a_chain_of_four_is_taken_and_of_five_refused() {
    let place = Place::new();
    place.raw("raw.img");
    place.qemu_img("convert -O qcow2 raw.img 1.qcow2");
    for (base, upper) in [(1, 2), (2, 3), (3, 4), (4, 5)] {
        place.qemu_img(&format!("create -f qcow2 -F qcow2 -b {base}.qcow2 {upper}.qcow2"));
    }

    let (four, five) = (place.judge("4.qcow2"), place.judge("5.qcow2"));

    assert_eq!(four.findings, []);
    assert!(only(&five).0.contains("more than 4 images"), "{five:?}");
}

#[rstest]
#[case::raw("raw.img", "raw", "", "raw.img, the base of")]
#[case::clusters("small.qcow2", "qcow2", "", "clusters of 512 bytes")]
#[case::compressed("packed.qcow2", "qcow2", "", "packed.qcow2 has 16 compressed clusters")]
#[case::missing("gone.qcow2", "qcow2", "gone.qcow2", "gone.qcow2: No such file")]
fn bases_are_judged_as_well(
    #[case] base: &str,
    #[case] format: &str,
    #[case] gone: &str,
    #[case] message: &str,
) {
    let place = Place::new();
    place.raw("raw.img");
    place.qemu_img("convert -O qcow2 -o cluster_size=512 raw.img small.qcow2");
    place.qemu_img("convert -c -O qcow2 raw.img packed.qcow2");
    place.qemu_img("convert -O qcow2 raw.img gone.qcow2");
    place.qemu_img(&format!("create -f qcow2 -F {format} -b {base} x.qcow2"));
    if !gone.is_empty() {
        fs::remove_file(place.path(gone)).unwrap();
    }

    let verdict = place.judge("x.qcow2");

    assert!(only(&verdict).0.contains(message), "{verdict:?}");
}

#[test]
fn a_base_is_looked_for_beside_its_image() {
    let place = Place::new();
    fs::create_dir(place.path("sub")).unwrap();
    place.raw("sub/raw.img");
    place.qemu_img("convert -O qcow2 sub/raw.img sub/base.qcow2");
    place.qemu_img("create -f qcow2 -F qcow2 -b base.qcow2 sub/x.qcow2");

    assert_eq!(place.judge("sub/x.qcow2").findings, []);
}

#[test]
fn an_image_that_is_cut_off_is_refused() {
    let place = Place::new();
    place.raw("raw.img");
    place.qemu_img("convert -O qcow2 raw.img x.qcow2");
    let file = File::options().write(true).open(place.path("x.qcow2")).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();

    let verdict = place.judge("x.qcow2");

    assert!(only(&verdict).0.contains("cut off"), "{verdict:?}");
}

#[rstest]
#[case::short(0, b"", 40, "the file is shorter")]
#[case::cluster_bits(20, &[0, 0, 0, 63], 1 << 16, "clusters of 2^63 bytes")]
#[case::l1_offset(40, &[0xff; 8], 1 << 16, "behind its end")]
#[case::l1_entries(36, &[0xff; 4], 1 << 16, "behind its end")]
fn a_header_that_leads_nowhere_is_refused(
    #[case] offset: u64,
    #[case] bytes: &[u8],
    #[case] length: u64,
    #[case] message: &str,
) {
    let place = Place::new();
    place.qemu_img("create -f qcow2 x.qcow2 1M");
    change(&place.path("x.qcow2"), offset, bytes);
    File::options().write(true).open(place.path("x.qcow2")).unwrap().set_len(length).unwrap();

    let verdict = place.judge("x.qcow2");

    assert!(only(&verdict).0.contains(message), "{verdict:?}");
}

/// Every L1 entry names the same table: it is read once, not 4 million times.
#[test]
fn tables_that_are_named_again_and_again_are_read_once() {
    let place = Place::new();
    place.raw("raw.img");
    place.qemu_img("convert -c -O qcow2 raw.img x.qcow2");
    let image = fs::read(place.path("x.qcow2")).unwrap();
    let l1 = u64::from_be_bytes(image[40..48].try_into().unwrap());
    let table = image[usize::try_from(l1).unwrap()..][..8].to_owned();
    let end = image.len() as u64;
    change(&place.path("x.qcow2"), end, &table.repeat(4 << 20));
    change(&place.path("x.qcow2"), 36, &(4_u32 << 20).to_be_bytes());
    change(&place.path("x.qcow2"), 40, &end.to_be_bytes());

    let verdict = place.judge("x.qcow2");

    assert!(only(&verdict).0.contains("16 compressed clusters"), "{verdict:?}");
}

#[rstest]
#[case::vmdk("vmdk", "VMDK", "vmdk")]
#[case::vdi("vdi", "VDI", "vdi")]
#[case::vhdx("vhdx", "VHDX", "vhdx")]
#[case::vhd("vpc", "VHD", "vpc")]
#[case::qed("qed", "QED", "qed")]
#[case::qcow("qcow", "qcow (version 1)", "qcow")]
#[case::parallels("parallels", "Parallels", "parallels")]
fn other_programs_images_are_named(#[case] format: &str, #[case] name: &str, #[case] from: &str) {
    let place = Place::new();
    place.qemu_img(&format!("create -f {format} disk 16M"));

    let verdict = place.judge("disk");

    let (message, _, help) = only(&verdict);
    assert!(message.ends_with(&format!("is a {name} image")), "{message}");
    assert!(help.contains(&format!("qemu-img convert -f {from} -O qcow2 ")), "{help}");
    assert!(verdict.is_refused());
}

#[test]
fn a_fixed_vhd_runs_with_a_warning() {
    let place = Place::new();
    place.raw("raw.img");
    place.qemu_img("convert -O vpc -o subformat=fixed,force_size=on raw.img x.vhd");

    let verdict = place.judge("x.vhd");

    assert!(only(&verdict).0.contains("fixed VHD") && !verdict.is_refused(), "{verdict:?}");
}

#[rstest]
#[case::gzip(b"\x1f\x8b\x08\0", "gzip -dk")]
#[case::xz(b"\xfd7zXZ\0\0", "xz -dk")]
#[case::zstd(b"\x28\xb5\x2f\xfd", "zstd -d")]
fn a_compressed_image_is_to_be_unpacked(#[case] start: &[u8], #[case] command: &str) {
    let place = Place::new();
    fs::write(place.path("x.img"), start).unwrap();

    let verdict = place.judge("x.img");

    assert!(only(&verdict).2.contains(command), "{verdict:?}");
}

#[rstest]
#[case::raw_said_qcow2("raw.img", DiskFormat::Qcow2, "is not a qcow2 file")]
#[case::qcow2_said_raw("x.qcow2", DiskFormat::Raw, "is a qcow2 image")]
fn a_format_that_is_wrong_is_refused(#[case] name: &str, #[case] said: DiskFormat, #[case] message: &str) {
    let place = Place::new();
    place.raw("raw.img");
    place.qemu_img("convert -O qcow2 raw.img x.qcow2");

    let verdict = judge(&place.path(name), Some(said), true).unwrap();

    assert!(only(&verdict).0.contains(message), "{verdict:?}");
}

/// A disk as published for UEFI: a GPT, and no boot code before it.
#[rstest]
#[case::raw("x.img", "raw")]
#[case::qcow2("x.qcow2", "qcow2")]
#[case::small_clusters("x.qcow2", "qcow2 -o cluster_size=512")]
fn a_disk_for_uefi_is_told(#[case] name: &str, #[case] format: &str) {
    let place = Place::new();
    let mut disk = vec![0; 1 << 20];
    disk[450] = 0xee;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk[512..520].copy_from_slice(b"EFI PART");
    fs::write(place.path("disk.img"), disk).unwrap();
    place.qemu_img(&format!("convert -f raw -O {format} disk.img {name}"));

    let verdict = place.judge(name);

    assert!(only(&verdict).0.contains("UEFI only") && !verdict.is_refused(), "{verdict:?}");
}

#[test]
fn an_overlay_boots_by_its_base() {
    let place = Place::new();
    place.raw("raw.img");
    place.qemu_img("convert -O qcow2 raw.img base.qcow2");
    place.qemu_img("create -f qcow2 -F qcow2 -b base.qcow2 x.qcow2");
    place.qemu_img("create -f qcow2 empty.qcow2 1M");

    assert_eq!(place.judge("x.qcow2").findings, []);
    assert!(only(&place.judge("empty.qcow2")).0.contains("no boot sector"));
    assert_eq!(judge(&place.path("empty.qcow2"), None, false).unwrap().findings, []);
}
