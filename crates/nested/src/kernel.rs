//! The helper VM's kernel: Debian's cloud kernel, fetched by apt and unpacked into the user's cache, never installed.
//!
//! ```text
//! <cache>/vmmlinux/l1/<package>_<version>/vmlinuz
//! <cache>/vmmlinux/l1/<package>_<version>/modules/00-irqbypass.ko …   in loading order, not compressed
//! ```
//!
//! A directory with its final name is whole: it is made under a temporary name and renamed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use etcetera::BaseStrategy as _;
use object::{Object as _, ObjectSection as _, read::elf::ElfFile64};
use walkdir::WalkDir;

use crate::{Error, Result, run};

/// Depends on the current kernel of its release of Debian.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Drivers that the helper VM needs; what they depend on comes along, what is built in is left out.
const MODULES: [&str; 4] = ["kvm_amd", "virtio_pci", "virtio_console", "virtio_blk"];

const GET_APT: &str = "the helper VM's kernel comes from Debian: this needs apt and dpkg, as on Debian or Ubuntu with \
                       Debian's archive among the sources";

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
    pub fn get(say: &dyn Fn(&str)) -> Result<Self> {
        let base = etcetera::choose_base_strategy().map_err(|e| {
            Error::io("find the home directory of the user for", "~/.cache", std::io::Error::other(e))
        })?;
        Self::cached_or_fetched(&base.cache_dir().join("vmmlinux/l1"), say)
    }

    /// The newest kernel in the cache; where there is none, it is fetched, and `say` hears of the longer steps.
    ///
    /// A cached kernel is used until its directory is removed: the helper VM has no network to be attacked from.
    fn cached_or_fetched(cache: &Path, say: &dyn Fn(&str)) -> Result<Self> {
        if let Some(kernel) = Self::newest(cache)? {
            return Ok(kernel);
        }
        fs::create_dir_all(cache).map_err(|e| Error::io("create", cache, e))?;
        say("fetching the helper VM's kernel (once, about 30 MB)");
        let package = fetch(cache)?;
        say("unpacking the helper VM's kernel");
        Self::unpack(&package.path().join("kernel.deb"), cache)?;
        Self::newest(cache)?.ok_or(Error::NoKernel { package: META_PACKAGE.to_owned() })
    }

    fn newest(cache: &Path) -> Result<Option<Self>> {
        if !cache.is_dir() {
            return Ok(None);
        }
        let dir = list(cache)?
            .into_iter()
            .filter(|dir| dir.join("vmlinuz").is_file())
            .max_by_key(|dir| fs::metadata(dir).and_then(|meta| meta.modified()).ok());
        let Some(dir) = dir else { return Ok(None) };
        Ok(Some(Self { vmlinuz: dir.join("vmlinuz"), modules: list(&dir.join("modules"))? }))
    }

    /// Unpacks a kernel package into the cache.
    fn unpack(package: &Path, cache: &Path) -> Result<()> {
        let name = run::stdout(
            Command::new("dpkg-deb").arg("--show").arg("--showformat=${Package}_${Version}").arg(package),
            GET_APT,
        )?;
        let scratch = scratch(cache)?;
        let tree = scratch.path().join("tree");
        run::stdout(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&tree), GET_APT)?;

        let files = Files::of(&tree)?;
        let whole = scratch.path().join("whole");
        let modules = whole.join("modules");
        fs::create_dir_all(&modules).map_err(|e| Error::io("create", &modules, e))?;
        let vmlinuz = whole.join("vmlinuz");
        fs::rename(&files.vmlinuz, &vmlinuz).map_err(|e| Error::io("move", &files.vmlinuz, e))?;
        for (index, (module, content)) in files.closure(cache, &MODULES)?.iter().enumerate() {
            let path = modules.join(format!("{index:02}-{module}.ko"));
            fs::write(&path, content).map_err(|e| Error::io("write", &path, e))?;
        }
        let to = cache.join(name.trim());
        match fs::rename(&whole, &to) {
            // Another run was faster: its directory is as good.
            Err(_) if to.join("vmlinuz").is_file() => Ok(()),
            result => result.map_err(|e| Error::io("create", &to, e)),
        }
    }
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

fn scratch(cache: &Path) -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(".new-")
        .tempdir_in(cache)
        .map_err(|e| Error::io("create a directory in", cache, e))
}

/// Downloads the kernel's package as `kernel.deb` into a directory that goes away when dropped.
///
/// The system's own package lists come first. Where they are missing or too old, lists of our own are fetched from the
/// same sources: that needs no root, and the system never hears of it.
fn fetch(cache: &Path) -> Result<tempfile::TempDir> {
    let dir = scratch(cache)?;
    let own_lists = cache.join(".apt");
    let mut tried = download(dir.path(), &[]);
    if let Err(error) = &tried {
        tracing::info!(%error, "the system's package lists do not lead to a kernel; fetching lists of our own");
        for sub in ["lists/partial", "archives/partial"] {
            let sub = own_lists.join(sub);
            fs::create_dir_all(&sub).map_err(|e| Error::io("create", &sub, e))?;
        }
        let options = [
            format!("Dir::State::lists={}", own_lists.join("lists").display()),
            format!("Dir::Cache={}", own_lists.display()),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "APT::Update::Post-Invoke::=".to_owned(),
        ];
        // apt-get fails when any third party's source does; whether Debian's came is seen at the download.
        run::output(apt("apt-get", &options).args(["--quiet=2", "update"]), GET_APT)?;
        tried = download(dir.path(), &options);
    }
    tried?;
    let package = list(dir.path())?.into_iter().find(|path| path.extension().is_some_and(|e| e == "deb"));
    let package = package.ok_or_else(|| Error::NoKernel { package: META_PACKAGE.to_owned() })?;
    let to = dir.path().join("kernel.deb");
    fs::rename(&package, &to).map_err(|e| Error::io("move", &package, e))?;
    Ok(dir)
}

fn apt(program: &str, options: &[String]) -> Command {
    let mut command = Command::new(program);
    command.args(options.iter().flat_map(|option| ["-o", option]));
    command
}

fn download(dir: &Path, options: &[String]) -> Result<()> {
    let shown =
        run::output(apt("apt-cache", options).args(["show", "--no-all-versions", META_PACKAGE]), GET_APT)?;
    let package = image_package(&String::from_utf8_lossy(&shown.stdout))
        .ok_or_else(|| Error::NoKernel { package: META_PACKAGE.to_owned() })?;
    run::stdout(apt("apt-get", options).args(["--quiet=2", "download", &package]).current_dir(dir), GET_APT)
        .map(drop)
}

/// The kernel that the meta package's record depends on.
fn image_package(record: &str) -> Option<String> {
    let depends = record.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    depends
        .split([',', '|'])
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
}

/// What an unpacked kernel package holds.
struct Files {
    release: String,
    vmlinuz: PathBuf,
    modules: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Files {
    fn of(tree: &Path) -> Result<Self> {
        let mut vmlinuz = None;
        let (mut modules, mut builtin) = (BTreeMap::new(), BTreeSet::new());
        for entry in WalkDir::new(tree) {
            let entry = entry.map_err(|e| Error::io("read", tree, e))?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy());
            if let Some(release) = name.strip_prefix("vmlinuz-") {
                vmlinuz = Some((release.to_owned(), path.to_owned()));
            } else if name == "modules.builtin" {
                let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
                builtin.extend(text.lines().filter_map(|line| module_name(line.rsplit('/').next()?)));
            } else if let Some(module) = module_name(&name) {
                modules.insert(module, path.to_owned());
            }
        }
        let (release, vmlinuz) =
            vmlinuz.ok_or_else(|| Error::NoKernel { package: META_PACKAGE.to_owned() })?;
        Ok(Self { release, vmlinuz, modules, builtin })
    }

    /// Modules and all they depend on, in loading order; those built into the kernel are left out.
    fn closure(&self, cache: &Path, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut order: Vec<(String, Vec<u8>)> = Vec::new();
        for module in wanted {
            self.add(cache, module, &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, cache: &Path, module: &str, order: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        if self.builtin.contains(module) || order.iter().any(|(name, _)| name == module) {
            return Ok(());
        }
        let path = self.modules.get(module).ok_or_else(|| Error::NoModule {
            release: self.release.clone(),
            module: module.to_owned(),
            cache: cache.to_owned(),
        })?;
        let content = read_module(path)?;
        for dependency in dependencies(path, &content)? {
            self.add(cache, &dependency, order)?;
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
    fn the_meta_package_leads_to_a_kernel() {
        let record = "Package: linux-image-cloud-amd64\nVersion: 6.12.1-1\n\
                      Depends: linux-image-6.12.1-cloud-amd64 (= 6.12.1-1), foo | bar\nSize: 1\n";
        assert_eq!(image_package(record).unwrap(), "linux-image-6.12.1-cloud-amd64");
        assert_eq!(image_package(""), None);
        assert_eq!(image_package("Depends: initramfs-tools\n"), None);
    }

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
        fs::create_dir_all(tree.path().join("boot")).unwrap();
        fs::write(tree.path().join("boot/vmlinuz-9.9"), b"kernel").unwrap();
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

    fn order(tree: &tempfile::TempDir, wanted: &[&str]) -> Result<Vec<String>> {
        let modules = Files::of(tree.path())?.closure(Path::new("cache"), wanted)?;
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
