//! Commands that findings recommend, and names in messages.

use std::path::{Path, PathBuf};

/// A path in a message: control characters and bytes that are not UTF-8 are escaped.
pub(crate) fn shown(path: &Path) -> String {
    path.to_string_lossy()
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

/// A path as a word for the shell that no program takes for an option or a protocol. A path that cannot be shown as it
/// is stands as `IMAGE`.
pub fn word(path: &Path) -> String {
    let Some(text) = path.to_str().filter(|text| !text.contains(char::is_control)) else {
        return "IMAGE".to_owned();
    };
    let plain = text.starts_with('/') || !text.starts_with('-') && !text.contains(':');
    let text = if plain { text.to_owned() } else { format!("./{text}") };
    shlex::try_quote(&text).map_or_else(|_| "IMAGE".to_owned(), std::borrow::Cow::into_owned)
}

/// The command that makes a qcow2 image without a base from one of QEMU's format `from`.
pub(crate) fn convert(path: &Path, from: &str) -> String {
    format!("qemu-img convert -f {from} -O qcow2 {} {}", word(path), word(&converted(path)))
}

/// The name of the converted image, beside the original.
fn converted(path: &Path) -> PathBuf {
    let named = path.with_extension("qcow2");
    if named != path {
        return named;
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push("-vmd.qcow2");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain(b"disk.vmdk", "qemu-img convert -f vmdk -O qcow2 disk.vmdk disk.qcow2")]
    #[case::same_extension(
        b"/a/disk.qcow2",
        "qemu-img convert -f vmdk -O qcow2 /a/disk.qcow2 /a/disk-vmd.qcow2"
    )]
    #[case::protocol(b"a:b", "qemu-img convert -f vmdk -O qcow2 ./a:b ./a:b.qcow2")]
    #[case::shell(b"a;touch x.img", "qemu-img convert -f vmdk -O qcow2 'a;touch x.img' 'a;touch x.qcow2'")]
    #[case::not_utf8(b"a\xff.img", "qemu-img convert -f vmdk -O qcow2 IMAGE IMAGE")]
    fn names_are_words(#[case] path: &[u8], #[case] command: &str) {
        assert_eq!(convert(Path::new(OsStr::from_bytes(path)), "vmdk"), command);
    }

    #[test]
    fn control_characters_are_not_shown() {
        assert_eq!(shown(Path::new("a\u{1b}[2J\n")), "a\\u{1b}[2J\\n");
    }
}
