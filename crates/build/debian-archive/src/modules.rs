//! The modules of a kernel in loading order.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use object::{Object as _, ObjectSection as _, read::elf::ElfFile64};
use walkdir::WalkDir;

use support::file;

use crate::{
    error::{Error, Result},
    kernel::DebianKernel,
};

impl DebianKernel {
    /// The wanted modules and their dependencies in loading order: names and uncompressed content. Modules that are built
    /// into the kernel are left out.
    pub fn modules_for(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let modules = Modules::of(self)?;
        let mut order = Vec::new();
        for module in wanted {
            modules.add(module, &mut order)?;
        }
        Ok(order)
    }
}

struct Modules<'a> {
    kernel: &'a DebianKernel,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl<'a> Modules<'a> {
    fn of(kernel: &'a DebianKernel) -> Result<Self> {
        let (mut files, mut builtin) = (BTreeMap::new(), BTreeSet::new());
        for entry in WalkDir::new(&kernel.modules) {
            let entry = entry.map_err(|e| file::Error::new("read", &kernel.modules, e))?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy());
            if name == "modules.builtin" {
                let text = fs::read_to_string(path).map_err(|e| file::Error::new("read", path, e))?;
                builtin.extend(text.lines().filter_map(|line| module_name(line.rsplit('/').next()?)));
            } else if let Some(module) = module_name(&name) {
                files.insert(module, path.to_owned());
            }
        }
        Ok(Self { kernel, files, builtin })
    }

    fn add(&self, module: &str, order: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        if self.builtin.contains(module) || order.iter().any(|(name, _)| name == module) {
            return Ok(());
        }
        let path = self.files.get(module).ok_or_else(|| Error::NoModule {
            release: self.kernel.release.clone(),
            module: module.to_owned(),
            dir: self.kernel.modules.clone(),
        })?;
        let content = read_module(path)?;
        for dependency in dependencies(path, &content)? {
            self.add(&dependency, order)?;
        }
        order.push((module.to_owned(), content));
        Ok(())
    }
}

/// The kernel's name for the module in a file; `None` if the file is not a module.
fn module_name(file: &str) -> Option<String> {
    let stem = file.strip_suffix(".xz").unwrap_or(file).strip_suffix(".ko")?;
    Some(stem.replace('-', "_"))
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let content = fs::read(path).map_err(|e| file::Error::new("read", path, e))?;
    if path.extension().is_none_or(|e| e != "xz") {
        return Ok(content);
    }
    let mut module = Vec::new();
    liblzma::read::XzDecoder::new(&*content)
        .read_to_end(&mut module)
        .map_err(|e| file::Error::new("decompress", path, e))?;
    Ok(module)
}

/// The names of the modules that a module depends on, from its section `.modinfo`: `depends=kvm,irqbypass`.
fn dependencies(path: &Path, module: &[u8]) -> Result<Vec<String>> {
    let bad = |e: object::read::Error| Error::NotAModule { path: path.to_owned(), problem: e.to_string() };
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
        let modules = kernel(tree).modules_for(wanted)?;
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
}
