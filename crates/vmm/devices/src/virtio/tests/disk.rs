//! Disk images.

use std::{fs, io::Write, os::unix::fs::FileExt, path::Path};

use imago::{FormatCreateBuilder, Storage, StorageCreateOptions, file::File, qcow2::Qcow2};
use vmd_release::DiskFormat;

use crate::virtio::disk::{self, DiskError};

/// The format as the user gives it.
const QCOW2: Option<DiskFormat> = Some(DiskFormat::Qcow2);

/// Creates a qcow2 image of 1 MiB with clusters of 64 KiB, backed by `base` if given.
fn create(path: &Path, base: Option<&str>, refcount_bits: usize) {
    let file = File::create_open(StorageCreateOptions::new().filename(path)).unwrap();
    let mut builder = Qcow2::<File>::create_builder(file).size(1 << 20).refcount_width(refcount_bits);
    if let Some(base) = base {
        builder = builder.backing(base.to_owned(), "qcow2".to_owned());
    }
    builder.create().unwrap();
}

/// Overwrites bytes of an image's header.
fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

fn refusal(path: &Path) -> String {
    let before = fs::read(path).unwrap();
    let checked = disk::check(path, QCOW2, true).unwrap_err().to_string();
    assert!(fs::read(path).unwrap() == before, "a check writes nothing");
    match disk::open(path, QCOW2, true) {
        Err(DiskError::Refused { reason, path: named }) => {
            assert_eq!(named, path);
            assert!(checked.ends_with(&reason), "{checked}");
            reason
        }
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn qcow2_images_are_read_and_written_over_their_base() {
    let directory = tempfile::tempdir().unwrap();
    let (base, top) = (directory.path().join("base.qcow2"), directory.path().join("top.qcow2"));
    create(&base, None, 16);
    let mut disk = disk::open(&base, None, true).unwrap();
    assert_eq!(disk.size(), 1 << 20);
    assert_eq!(disk.write_at(&[7; 1024], 512).unwrap(), 1024);
    drop(disk);
    let before = fs::read(&base).unwrap();

    create(&top, Some("base.qcow2"), 16);
    let untouched = fs::read(&top).unwrap();
    assert_eq!(disk::check(&top, QCOW2, true).unwrap(), DiskFormat::Qcow2);
    assert!(fs::read(&top).unwrap() == untouched, "a check writes nothing");
    let mut disk = disk::open(&top, QCOW2, true).unwrap();
    let mut sectors = [0; 2048];
    assert_eq!(disk.read_at(&mut sectors, 0).unwrap(), 2048);
    assert_eq!((sectors[511], sectors[512], sectors[1535], sectors[1536]), (0, 7, 7, 0));
    disk.write_at(&[8; 512], 1024).unwrap();
    assert_eq!(disk.read_at(&mut sectors, (1 << 20) - 1024).unwrap(), 0, "beyond the end: nothing at all");
    assert_eq!(disk.write_at(&sectors, (1 << 20) - 1024).unwrap(), 0);
    drop(disk);
    assert!(fs::read(&base).unwrap() == before, "the base has not been written to");

    let mut disk = disk::open(&top, QCOW2, false).unwrap();
    disk.read_at(&mut sectors, 0).unwrap();
    assert_eq!((sectors[1023], sectors[1024], sectors[1536]), (7, 8, 0));
    assert!(disk.write_at(&[1; 512], 0).is_err());
}

#[test]
fn a_missing_image_is_named() {
    let gone = Path::new("/nonexistent.img");
    for error in [disk::check(gone, None, true).err(), disk::open(gone, None, true).err()] {
        let error = error.unwrap();
        assert_eq!(error.to_string(), "cannot open the disk image /nonexistent.img");
    }
}

#[test]
fn a_missing_base_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().join("top.qcow2");
    create(&top, Some("gone.qcow2"), 16);
    match disk::open(&top, QCOW2, true) {
        Err(DiskError::Open { path, .. }) => assert_eq!(path, directory.path().join("gone.qcow2")),
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn an_image_of_a_detected_format_names_no_other_file() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.img");
    create(&directory.path().join("base.qcow2"), None, 16);
    // As a guest that has the disk as a raw one can write it.
    create(&image, Some("base.qcow2"), 16);
    for error in [disk::check(&image, None, true).err(), disk::open(&image, None, true).err()] {
        let error = error.unwrap();
        assert!(matches!(&error, DiskError::BaseOfDetected { path } if *path == image), "{error}");
    }
    assert!(disk::open(&image, QCOW2, true).is_ok());
    assert_eq!(disk::check(&image, Some(DiskFormat::Raw), true).unwrap(), DiskFormat::Raw);
}

#[test]
fn truncated_images_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image.qcow2");
    create(&image, None, 16);
    let mut disk = disk::open(&image, None, true).unwrap();
    for cluster in 0..4 {
        disk.write_at(&vec![7; 1 << 16], cluster << 16).unwrap();
    }
    drop(disk);
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    let whole = file.metadata().unwrap().len();
    assert!(disk::check(&image, None, true).is_ok());
    for length in (1..whole.div_ceil(1 << 16)).rev().map(|clusters| clusters << 16) {
        file.set_len(length).unwrap();
        let error = disk::check(&image, None, true).unwrap_err();
        assert!(matches!(error, DiskError::Truncated { .. }), "{length} of {whole}: {error}");
    }
}

#[test]
fn a_raw_base_is_refused_so_that_an_image_cannot_expose_other_files() {
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().join("top.qcow2");
    fs::write(directory.path().join("secret"), [0; 4096]).unwrap();
    create(&top, Some("secret"), 16);
    match disk::open(&top, QCOW2, true) {
        Err(DiskError::Refused { path, reason }) => {
            assert_eq!(path, directory.path().join("secret"));
            assert!(reason.contains("magic"), "{reason}");
        }
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn qcow2_images_are_refused_as_by_vmd() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image.qcow2");
    let create = |refcount_bits| {
        let _ = fs::remove_file(&image);
        create(&image, None, refcount_bits);
    };
    create(8);
    assert!(refusal(&image).contains("16 bits wide"));

    create(16);
    // A version 2 header ends before the refcount width; header extensions, here none, follow.
    patch(&image, 4, &2u32.to_be_bytes());
    patch(&image, 72, &[0; 32]);
    assert!(refusal(&image).contains("as every version 2 image"));

    create(16);
    patch(&image, 72, &0x10u64.to_be_bytes());
    assert!(refusal(&image).contains("features 0x10"));

    create(16);
    patch(&image, 32, &1u32.to_be_bytes());
    assert!(refusal(&image).contains("encrypted"));

    create(16);
    patch(&image, 4, &4u32.to_be_bytes());
    assert!(refusal(&image).contains("version 4"));
}

#[test]
fn images_with_themselves_as_base_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image.qcow2");
    create(&image, Some("image.qcow2"), 16);
    assert!(refusal(&image).contains("more than 4 images"));
}

#[test]
fn the_error_for_a_truncated_qcow2_header_names_the_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"QFI\xfb half a header").unwrap();
    match disk::open(file.path(), QCOW2, true) {
        Err(error @ DiskError::Qcow2 { .. }) => {
            assert!(error.to_string().contains(file.path().to_str().unwrap()));
        }
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn format_names_round_trip() {
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    assert!("vmdk".parse::<DiskFormat>().unwrap_err().to_string().contains("`vmdk`"));
}
