//! The helper VM's kernel: Debian's cloud kernel, unpacked into the user's cache, never installed.
//!
//! ```text
//! <cache>/vmmlinux/debian/…                                the kernel's packages, as `forge` keeps them
//! <cache>/vmmlinux/l1/<release>/00-irqbypass.ko …          modules in loading order, not compressed
//! ```
//!
//! A directory with its final name is whole: it is made under a temporary name and renamed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use forge::{Cache, Debian, DebianKernel, Progress};
use object::{Object as _, ObjectSection as _, read::elf::ElfFile64};
use walkdir::WalkDir;

use crate::{Error, Result};

/// Where the kernel comes from, on whatever Debian this runs: bookworm's 6.1 is compressed with LZ4 and at its init a
/// second sooner than later releases' kernels.
const SUITE: &str = "bookworm";

/// Depends on the current kernel of its release of Debian.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Drivers that the helper VM needs; what they depend on comes along, what is built in is left out.
const MODULES: [&str; 4] = ["kvm_amd", "virtio_pci", "virtio_console", "virtio_blk"];

/// The helper VM's kernel, in the user's cache.
#[derive(Debug)]
pub struct Kernel {
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// KVM's and virtio's modules, not compressed, in the order in which they are loaded.
    pub modules: Vec<PathBuf>,
}

impl Kernel {
    /// The helper VM's kernel, which is fetched where the cache has none; `say` hears of that.
    ///
    /// A cached kernel is used until its directory is removed: the helper VM has no network to be attacked from.
    pub fn get(say: &(dyn Fn(&str) + Send + Sync)) -> Result<Self> {
        let cache = Cache::user()?;
        let kernel = Debian::new(&cache, SUITE, &Phases(say)).kernel(META_PACKAGE)?;
        let modules = unpack_modules(&kernel, &cache.root().join("l1"))?;
        Ok(Self { vmlinuz: kernel.vmlinuz, modules })
    }
}

/// Of what the forge tells about its work, the phases.
struct Phases<'a>(&'a (dyn Fn(&str) + Send + Sync));

impl Progress for Phases<'_> {
    fn phase(&self, what: &str) {
        (self.0)(what);
    }

    fn step(&self, _: u64, _: u64, _: &str) {}

    fn note(&self, what: &str) {
        (self.0)(what);
    }
}

/// Decompresses the modules that the helper VM needs into `cache`, unless that is done.
fn unpack_modules(kernel: &DebianKernel, cache: &Path) -> Result<Vec<PathBuf>> {
    let to = cache.join(&kernel.release);
    if !to.is_dir() {
        fs::create_dir_all(cache).map_err(|e| Error::io("create", cache, e))?;
        let scratch = tempfile::Builder::new()
            .prefix(".new-")
            .tempdir_in(cache)
            .map_err(|e| Error::io("create a directory in", cache, e))?;
        for (index, (module, content)) in Modules::of(kernel)?.closure(&MODULES)?.iter().enumerate() {
            let path = scratch.path().join(format!("{index:02}-{module}.ko"));
            fs::write(&path, content).map_err(|e| Error::io("write", &path, e))?;
        }
        match fs::rename(scratch.path(), &to) {
            // Another run was faster: its directory is as good.
            Err(_) if to.is_dir() => {}
            result => result.map_err(|e| Error::io("create", &to, e))?,
        }
    }
    list(&to)
}

/// Paths in a directory, sorted.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(|e| Error::io("read", dir, e))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|e| Error::io("read", dir, e))?;
    paths.sort();
    Ok(paths)
}

/// The modules of a kernel.
struct Modules {
    release: String,
    /// Where the kernel is, to be named when it will not do.
    dir: PathBuf,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Modules {
    fn of(kernel: &DebianKernel) -> Result<Self> {
        let (mut files, mut builtin) = (BTreeMap::new(), BTreeSet::new());
        for entry in WalkDir::new(&kernel.modules) {
            let entry = entry.map_err(|e| Error::io("read", &kernel.modules, e))?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy());
            if name == "modules.builtin" {
                let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
                builtin.extend(text.lines().filter_map(|line| module_name(line.rsplit('/').next()?)));
            } else if let Some(module) = module_name(&name) {
                files.insert(module, path.to_owned());
            }
        }
        Ok(Self { release: kernel.release.clone(), dir: kernel.modules.clone(), files, builtin })
    }

    /// Modules and all they depend on, in loading order; those built into the kernel are left out.
    fn closure(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut order: Vec<(String, Vec<u8>)> = Vec::new();
        for module in wanted {
            self.add(module, &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, module: &str, order: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        if self.builtin.contains(module) || order.iter().any(|(name, _)| name == module) {
            return Ok(());
        }
        let path = self.files.get(module).ok_or_else(|| Error::NoModule {
            release: self.release.clone(),
            module: module.to_owned(),
            dir: self.dir.clone(),
        })?;
        let content = read_module(path)?;
        for dependency in dependencies(path, &content)? {
            self.add(&dependency, order)?;
        }
        order.push((module.to_owned(), content));
        Ok(())
    }
}

/// The name that the kernel gives to the module in a file; `None` if it is no module.
fn module_name(file: &str) -> Option<String> {
    let stem = file.strip_suffix(".xz").unwrap_or(file).strip_suffix(".ko")?;
    Some(stem.replace('-', "_"))
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let content = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    if path.extension().is_none_or(|e| e != "xz") {
        return Ok(content);
    }
    let mut module = Vec::new();
    liblzma::read::XzDecoder::new(&*content)
        .read_to_end(&mut module)
        .map_err(|e| Error::io("decompress", path, e))?;
    Ok(module)
}

/// What a module says it depends on, in the section `.modinfo`: `depends=kvm,irqbypass`.
fn dependencies(path: &Path, module: &[u8]) -> Result<Vec<String>> {
    let bad = |e: object::read::Error| Error::NotElf { path: path.to_owned(), problem: e.to_string() };
    let elf = ElfFile64::<object::LittleEndian>::parse(module).map_err(bad)?;
    let Some(info) = elf.section_by_name(".modinfo") else { return Ok(Vec::new()) };
    let depends = info
        .data()
        .map_err(bad)?
        .split(|byte| *byte == 0)
        .find_map(|field| field.strip_prefix(b"depends="))
        .unwrap_or_default();
    Ok(String::from_utf8_lossy(depends)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_files_are_known_by_the_kernels_names() {
        assert_eq!(module_name("kvm-amd.ko").unwrap(), "kvm_amd");
        assert_eq!(module_name("virtio_blk.ko.xz").unwrap(), "virtio_blk");
        assert_eq!(module_name("modules.dep"), None);
    }

    /// A relocatable ELF64 with the one section `.modinfo`.
    fn module(info: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let (info_at, names_at) = (64, 64 + info.len());
        let table_at = (names_at + names.len()).next_multiple_of(8);
        let mut elf = vec![0; table_at + 3 * 64];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[0x10] = 1;
        elf[0x12] = 62;
        elf[0x14] = 1;
        elf[0x28..0x30].copy_from_slice(&(table_at as u64).to_le_bytes());
        elf[0x34] = 64;
        elf[0x3a] = 64;
        elf[0x3c] = 3;
        elf[0x3e] = 2;
        elf[info_at..names_at].copy_from_slice(info);
        elf[names_at..names_at + names.len()].copy_from_slice(names);
        for (index, (name, kind, at, len)) in
            [(1u32, 1u32, info_at, info.len()), (10, 3, names_at, names.len())].into_iter().enumerate()
        {
            let header = table_at + (index + 1) * 64;
            elf[header..header + 4].copy_from_slice(&name.to_le_bytes());
            elf[header + 4..header + 8].copy_from_slice(&kind.to_le_bytes());
            elf[header + 24..header + 32].copy_from_slice(&(at as u64).to_le_bytes());
            elf[header + 32..header + 40].copy_from_slice(&(len as u64).to_le_bytes());
        }
        elf
    }

    fn tree(modules: &[(&str, &str)], builtin: &str) -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        let lib = tree.path().join("lib/modules/9.9/kernel/a");
        fs::create_dir_all(&lib).unwrap();
        fs::write(tree.path().join("lib/modules/9.9/modules.builtin"), builtin).unwrap();
        for (file, depends) in modules {
            let content = module(format!("license=GPL\0depends={depends}\0").as_bytes());
            let content = if Path::new(file).extension().is_some_and(|e| e == "xz") {
                let mut xz = Vec::new();
                liblzma::read::XzEncoder::new(&*content, 0).read_to_end(&mut xz).unwrap();
                xz
            } else {
                content
            };
            fs::write(lib.join(file), content).unwrap();
        }
        tree
    }

    fn kernel(tree: &tempfile::TempDir) -> DebianKernel {
        DebianKernel {
            release: "9.9".to_owned(),
            vmlinuz: tree.path().join("vmlinuz"),
            config: tree.path().join("config"),
            modules: tree.path().join("lib/modules/9.9"),
        }
    }

    fn order(tree: &tempfile::TempDir, wanted: &[&str]) -> Result<Vec<String>> {
        let modules = Modules::of(&kernel(tree))?.closure(wanted)?;
        Ok(modules.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn modules_are_loaded_after_what_they_depend_on() {
        let tree = tree(
            &[("kvm-amd.ko.xz", "kvm,ccp"), ("kvm.ko", "irqbypass"), ("irqbypass.ko", ""), ("ccp.ko.xz", "")],
            "kernel/drivers/virtio/virtio_pci.ko\n",
        );
        assert_eq!(order(&tree, &["kvm_amd", "virtio_pci"]).unwrap(), ["irqbypass", "kvm", "ccp", "kvm_amd"]);
    }

    #[test]
    fn a_missing_module_is_named() {
        let tree = tree(&[("kvm-amd.ko", "kvm")], "");
        let error = order(&tree, &["kvm_amd"]).unwrap_err();
        assert_eq!(error.to_string(), "kernel 9.9 has no module kvm");
    }

    #[test]
    fn modules_are_unpacked_once_and_whole() {
        let all =
            [("kvm-amd.ko.xz", ""), ("virtio_pci.ko", ""), ("virtio_console.ko", ""), ("virtio_blk.ko", "")];
        let (tree, cache) = (tree(&all, ""), tempfile::tempdir().unwrap());
        let first = unpack_modules(&kernel(&tree), cache.path()).unwrap();
        assert_eq!(first.len(), MODULES.len());
        fs::remove_dir_all(tree.path().join("lib")).unwrap();
        assert_eq!(unpack_modules(&kernel(&tree), cache.path()).unwrap(), first);
    }
}
