//! The kernel that the disk boots: a bzImage, what its header says, and the modules that belong to it.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// A kernel, checked.
#[derive(Debug, Clone)]
pub struct Kernel {
    bzimage: PathBuf,
    initrd: Option<PathBuf>,
    /// The directory named after the release.
    modules: Option<PathBuf>,
    release: String,
}

impl Kernel {
    /// What `vmmlinux build` left in `out/<name>/`: a bzImage, and modules where the configuration has any.
    pub fn from_build(directory: &Path) -> Result<Self> {
        if !directory.join("bzImage").exists() {
            return Err(Error::NotABuild { path: directory.to_owned() });
        }
        let modules = directory.join("modules");
        let mut kernel = Self::from_files(&directory.join("bzImage"), None, None)?;
        if let Some(found) = find_modules(&modules, &kernel.release) {
            check_modules(&found, &kernel.release)?;
            kernel.modules = Some(found);
        }
        Ok(kernel)
    }

    /// Single files. `modules` is a directory that has `lib/modules/<release>`, or `<release>`, or is that.
    pub fn from_files(bzimage: &Path, initrd: Option<&Path>, modules: Option<&Path>) -> Result<Self> {
        let release = release_of(bzimage)?;
        if let Some(initrd) = initrd {
            File::open(initrd).map_err(Error::io("read", initrd))?;
        }
        let modules = modules
            .map(|directory| {
                let found = find_modules(directory, &release).ok_or_else(|| Error::NoModules {
                    path: directory.to_owned(),
                    release: release.clone(),
                    found: releases_in(directory),
                })?;
                check_modules(&found, &release)?;
                Ok::<_, Error>(found)
            })
            .transpose()?;
        Ok(Self { bzimage: bzimage.to_owned(), initrd: initrd.map(Path::to_owned), modules, release })
    }

    /// What `uname -r` will say.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The kernel's file.
    pub fn bzimage(&self) -> &Path {
        &self.bzimage
    }

    /// The initial RAM disk's file.
    pub fn initrd(&self) -> Option<&Path> {
        self.initrd.as_deref()
    }

    /// The configuration beside the kernel's file, as builds (`config`) and distributions (`config-<release>`) have it;
    /// empty if there is none.
    pub(crate) fn configuration(&self) -> String {
        let beside = |name: &str| fs::read_to_string(self.bzimage.with_file_name(name));
        beside(&format!("config-{}", self.release)).or_else(|_| beside("config")).unwrap_or_default()
    }

    /// The directory of the modules, `…/<release>`.
    pub fn modules(&self) -> Option<&Path> {
        self.modules.as_deref()
    }
}

/// Reads the release from the setup header, and checks that the file is whole. Field offsets are those of the
/// kernel's Documentation/arch/x86/boot.rst.
fn release_of(path: &Path) -> Result<String> {
    let bad = |why: &str| Error::NotAKernel { path: path.to_owned(), why: why.to_owned() };
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let mut head = Vec::new();
    file.by_ref().take(64 << 10).read_to_end(&mut head).map_err(Error::io("read", path))?;

    if head.starts_with(b"\x7fELF") {
        return Err(bad("it is an ELF file (a vmlinux); the bzImage beside it boots"));
    }
    if head.get(0x1fe..0x200) != Some(&[0x55, 0xaa]) || head.get(0x202..0x206) != Some(b"HdrS") {
        return Err(bad("it has no setup header"));
    }
    let word = |at: usize| head.get(at..at + 2).map(|b| u64::from(u16::from_le_bytes([b[0], b[1]])));
    let (Some(version), Some(name), Some(high), Some(low_size), Some(high_size)) =
        (word(0x206), word(0x20e), head.get(0x211), word(0x1f4), word(0x1f6))
    else {
        return Err(bad("its setup header is cut off"));
    };
    if version < 0x0204 || high & 1 == 0 {
        return Err(bad("it is not a bzImage"));
    }
    // Zero sectors of setup mean four, for the oldest boot loaders' sake.
    let setup = match head[0x1f1] {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let whole = (setup + 1) * 512 + (low_size | high_size << 16) * 16;
    if length < whole {
        return Err(bad(&format!("it is cut off: {length} bytes of {whole}")));
    }
    let release = usize::try_from(name).ok().and_then(|name| head.get(name + 0x200..)).unwrap_or_default();
    let release: Vec<u8> =
        release.iter().copied().take_while(|c| c.is_ascii_graphic() && !b"/\\".contains(c)).collect();
    match String::from_utf8(release) {
        Ok(release) if name != 0 && release.starts_with(|c: char| c.is_ascii_digit()) => Ok(release),
        _ => Err(bad("its header names no release")),
    }
}

fn find_modules(directory: &Path, release: &str) -> Option<PathBuf> {
    let itself = directory.file_name().is_some_and(|name| name == release).then(|| directory.to_owned());
    [directory.join("lib/modules").join(release), directory.join(release)]
        .into_iter()
        .chain(itself)
        .find(|candidate| candidate.is_dir())
}

fn releases_in(directory: &Path) -> Vec<String> {
    let mut releases: Vec<_> = fs::read_dir(directory.join("lib/modules"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    releases.sort();
    releases
}

fn check_modules(directory: &Path, release: &str) -> Result<()> {
    if directory.join("modules.dep").is_file() {
        Ok(())
    } else {
        Err(Error::NoModulesDep { path: directory.to_owned(), release: release.to_owned() })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A file with a bzImage's header and nothing that runs.
    pub(crate) fn header_only(release: &str) -> Vec<u8> {
        let mut image = vec![0; 5 * 512 + 160];
        image[0x1f1] = 4;
        image[0x1f4] = 10;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[0x20e..0x210].copy_from_slice(&0x400_u16.to_le_bytes());
        image[0x211] = 1;
        let name = format!("{release} (me@here) #1 SMP");
        image[0x600..0x600 + name.len()].copy_from_slice(name.as_bytes());
        image
    }

    fn kernel_of(bytes: &[u8]) -> Result<Kernel> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bzImage");
        fs::write(&path, bytes).unwrap();
        Kernel::from_files(&path, None, None)
    }

    #[test]
    fn the_release_is_read_from_the_header() {
        assert_eq!(kernel_of(&header_only("7.3.4-vmd")).unwrap().release(), "7.3.4-vmd");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let why = |bytes: &[u8]| kernel_of(bytes).unwrap_err().to_string();
        let good = header_only("7.3.4");
        assert!(why(b"").contains("no setup header"));
        assert!(why(b"\x7fELF\x02\x01").contains("vmlinux"));
        assert!(why(&good[..0x1ff]).contains("no setup header"));
        assert!(why(&good[..0x210]).contains("header is cut off"));
        assert!(why(&good[..good.len() - 1]).contains("is cut off: 2719 bytes of 2720"));
        let mut low = good.clone();
        low[0x211] = 0;
        assert!(why(&low).contains("not a bzImage"));
        let mut nameless = good.clone();
        nameless[0x600] = 0;
        assert!(why(&nameless).contains("no release"));
        let mut wild = good;
        wild[0x20e..0x210].copy_from_slice(&[0xff, 0xff]);
        assert!(why(&wild).contains("no release"));
    }

    #[test]
    fn modules_are_found_and_must_be_the_kernels_own() {
        let dir = tempfile::tempdir().unwrap();
        let bzimage = dir.path().join("bzImage");
        fs::write(&bzimage, header_only("7.3.4")).unwrap();
        let tree = dir.path().join("modules/lib/modules");
        fs::create_dir_all(tree.join("7.3.3")).unwrap();

        // A build without modules of its own is fine; a directory given by name must have them.
        assert_eq!(Kernel::from_build(dir.path()).unwrap().modules(), None);
        let modules = dir.path().join("modules");
        match Kernel::from_files(&bzimage, None, Some(&modules)) {
            Err(Error::NoModules { found, .. }) => assert_eq!(found, ["7.3.3"]),
            other => panic!("{other:?}"),
        }

        let own = tree.join("7.3.4");
        fs::create_dir(&own).unwrap();
        assert!(matches!(Kernel::from_build(dir.path()), Err(Error::NoModulesDep { .. })));
        fs::write(own.join("modules.dep"), "").unwrap();
        for given in [&modules, &tree, &own] {
            let kernel = Kernel::from_files(&bzimage, None, Some(given)).unwrap();
            assert_eq!(kernel.modules(), Some(own.as_path()));
        }
        assert_eq!(Kernel::from_build(dir.path()).unwrap().modules(), Some(own.as_path()));
    }

    #[test]
    fn files_that_are_not_there_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Kernel::from_build(dir.path()).unwrap_err().to_string();
        assert!(error.contains("bzImage"), "{error}");
        let bzimage = dir.path().join("bzImage");
        fs::write(&bzimage, header_only("7.3.4")).unwrap();
        let error =
            Kernel::from_files(&bzimage, Some(&dir.path().join("initrd")), None).unwrap_err().to_string();
        assert!(error.contains("initrd"), "{error}");
    }
}
