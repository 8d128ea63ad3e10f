//! A kernel small enough to be made up on the spot, and a mirror to fetch it from.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use kernel_builder::{BoxedDiagnostic, Configuration, KernelBuilder, Options, Origin};
use liblzma::write::XzEncoder;
use pgp::{
    composed::{ArmorOptions, DetachedSignature, KeyType, SecretKeyParamsBuilder, SignedSecretKey},
    crypto::hash::HashAlgorithm,
    types::{KeyDetails, Password},
};
use support::{cache::Cache, hash::hash_file, progress::Progress};
use tempfile::TempDir;

/// The files of the made-up kernel. Its Makefile answers the targets that a build asks for, with O= and V=1.
pub(crate) const FILES: &[(&str, &str)] = &[
    (
        "Makefile",
        r"# A made-up kernel
VERSION = 7
PATCHLEVEL = 3
SUBLEVEL = 4
EXTRAVERSION =

objects := init/main.o lib/sum.o
cc := $(CC) $(KCFLAGS) -g

all: $(O)/arch/x86/boot/bzImage $(O)/System.map $(O)/include/config/kernel.release $(O)/hello.ko

$(O)/%.o: %.c $(O)/.config
	@mkdir -p $(@D)
	@echo '# CC      $*.o'; echo '  $(cc) -c -o $@ $<'; $(cc) -c -o $@ $<

$(O)/vmlinux: $(addprefix $(O)/,$(objects))
	@echo '# LD      vmlinux'; ld -r -o $@ $^

$(O)/System.map: $(O)/vmlinux
	@nm $< > $@

$(O)/arch/x86/boot/bzImage: $(O)/vmlinux
	@mkdir -p $(@D)
	@echo '$(KBUILD_BUILD_USER)@$(KBUILD_BUILD_HOST) $(KBUILD_BUILD_TIMESTAMP)' > $@
	@cat $< >> $@

$(O)/include/config/kernel.release:
	@mkdir -p $(@D)
	@echo 7.3.4 > $@

$(O)/hello.ko: $(O)/init/main.o
	@cp $< $@

modules_install:
	@mkdir -p $(INSTALL_MOD_PATH)/lib/modules/7.3.4/kernel
	@cp $(O)/hello.ko $(INSTALL_MOD_PATH)/lib/modules/7.3.4/kernel/
	@ln -s $(O) $(INSTALL_MOD_PATH)/lib/modules/7.3.4/build

mrproper:
	@rm -f .config $(objects)
",
    ),
    ("Kconfig", "mainmenu \"A made-up kernel\"\nsource \"drivers/Kconfig\"\n"),
    ("init/main.c", "int sum(int a, int b);\n\nint start_kernel(void)\n{\n\treturn sum(1, 2);\n}\n"),
    ("lib/sum.c", "int sum(int a, int b)\n{\n\treturn a + b;\n}\n"),
    ("drivers/Kconfig", "menu \"Device Drivers\"\n\nsource \"drivers/virt/Kconfig\"\n\nendmenu\n"),
    ("drivers/Makefile", "obj-y += virt/\n"),
    ("drivers/virt/Kconfig", "if VIRT_DRIVERS\n\nconfig VMGENID\n\ttristate \"A\"\n\nendif\n"),
    ("drivers/virt/Makefile", "obj-$(CONFIG_VMGENID) += vmgenid.o"),
];

/// A patch that applies.
pub(crate) const PATCH: &str = "\
Subject: sum: Subtract

The sum is a difference.
---
 lib/sum.c | 2 +-
 1 file changed, 1 insertion(+), 1 deletion(-)

diff --git a/lib/sum.c b/lib/sum.c
index 1111111..2222222 100644
--- a/lib/sum.c
+++ b/lib/sum.c
@@ -1,4 +1,4 @@
 int sum(int a, int b)
 {
-\treturn a + b;
+\treturn a - b;
 }
";

/// A place to work in: a kernel directory, a mirror beside it, and a cache.
pub(crate) struct Place {
    pub(crate) dir: TempDir,
    pub(crate) key: SignedSecretKey,
    pub(crate) cache: PathBuf,
    pub(crate) out: PathBuf,
}

/// The messages of a builder.
#[derive(Clone, Default)]
pub(crate) struct Said(pub(crate) Arc<Mutex<Vec<String>>>);

impl Progress for Said {
    fn phase(&self, what: &str) {
        self.0.lock().unwrap().push(what.to_owned());
    }
    fn step(&self, _: u64, _: u64, _: &str) {}
    fn note(&self, what: &str) {
        self.0.lock().unwrap().push(what.to_owned());
    }
}

impl Place {
    /// A kernel directory that pins a new key, and a mirror with a good 7.3.3 and 7.3.4.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = new_key();
        let (cache, out) = (dir.path().join("cache"), dir.path().join("out"));
        let place = Self { dir, key, cache, out };
        fs::create_dir_all(place.mirror()).unwrap();
        for sub in ["keys", "patches/test"] {
            fs::create_dir_all(place.kernel_dir().join(sub)).unwrap();
        }
        let armored = place.key.to_public_key().to_armored_string(ArmorOptions::default()).unwrap();
        fs::write(place.kernel_dir().join("keys/tester.asc"), armored).unwrap();
        let series = format!(
            "default = \"7.3\"\nkernel_org = \"file://{}\"\nrust_src_suites = []\n\
             [[keys]]\nowner = \"A Tester\"\nfingerprint = \"{:X}\"\n\
             [series.\"7.3\"]\nsuites = []\nrust = false\n",
            place.dir.path().join("mirror").display(),
            place.key.fingerprint()
        );
        fs::write(place.kernel_dir().join("series.toml"), series).unwrap();
        let stack = "[[group]]\nname = \"test\"\npurpose = \"to be applied\"\n";
        fs::write(place.kernel_dir().join("patches/stack.toml"), stack).unwrap();
        place.offer("7.3.3", &tarball("7.3.3", FILES), &place.key);
        place.offer("7.3.4", &tarball("7.3.4", FILES), &place.key);
        place
    }

    pub(crate) fn kernel_dir(&self) -> PathBuf {
        self.dir.path().join("kernel")
    }

    pub(crate) fn mirror(&self) -> PathBuf {
        self.dir.path().join("mirror/v7.x")
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.cache.clone()
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.out.clone()
    }

    /// Puts a release on the mirror, signed over its uncompressed tar, and lists it.
    pub(crate) fn offer(&self, version: &str, tar: &[u8], key: &SignedSecretKey) {
        fs::write(self.mirror().join(format!("linux-{version}.tar.xz")), compress(tar)).unwrap();
        let signature = DetachedSignature::sign_binary_data(
            rand::thread_rng(),
            &key.primary_key,
            &Password::empty(),
            HashAlgorithm::Sha256,
            tar,
        )
        .unwrap();
        let armored = signature.to_armored_string(ArmorOptions::default()).unwrap();
        fs::write(self.mirror().join(format!("linux-{version}.tar.sign")), armored).unwrap();
        self.list();
    }

    /// Writes the mirror's list of what is there.
    pub(crate) fn list(&self) {
        let mut listing = String::from("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n");
        for entry in fs::read_dir(self.mirror()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "xz") {
                let name = path.file_name().unwrap().display().to_string();
                writeln!(listing, "{}  {name}", hash_file(&path).unwrap()).unwrap();
            }
        }
        fs::write(self.mirror().join("sha256sums.asc"), listing).unwrap();
    }

    pub(crate) fn options(&self) -> Options {
        Options { origin: Some(Origin::KernelOrg), ..Options::new(self.kernel_dir()) }
    }

    pub(crate) fn builder(&self) -> KernelBuilder {
        self.builder_with(self.options())
    }

    pub(crate) fn builder_with(&self, options: Options) -> KernelBuilder {
        KernelBuilder::new(options, Cache::at(self.cache()), Box::new(Said::default())).unwrap()
    }

    pub(crate) fn patch(&self, name: &str, text: &str) {
        fs::write(self.kernel_dir().join("patches/test").join(name), text).unwrap();
    }

    /// Everything in a directory of the cache that is not a lock, temporary names included.
    pub(crate) fn cached(&self, what: &str) -> Vec<String> {
        let entries = fs::read_dir(self.cache().join(what)).into_iter().flatten();
        let names = entries.map(|e| e.unwrap().file_name().display().to_string());
        names.filter(|name| name != "series.lock").collect()
    }
}

pub(crate) fn new_key() -> SignedSecretKey {
    SecretKeyParamsBuilder::default()
        .key_type(KeyType::Ed25519Legacy)
        .can_sign(true)
        .primary_user_id("A Tester <tester@example.invalid>".into())
        .build()
        .unwrap()
        .generate(rand::thread_rng())
        .unwrap()
}

/// An uncompressed tar of a release.
pub(crate) fn tarball(version: &str, files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_795_000_000);
        tar.append_data(&mut header, format!("linux-{version}/{name}"), text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

pub(crate) fn compress(tar: &[u8]) -> Vec<u8> {
    let mut xz = XzEncoder::new(Vec::new(), 0);
    xz.write_all(tar).unwrap();
    xz.finish().unwrap()
}

/// A configuration that is one line of text.
pub(crate) struct Config(pub(crate) &'static str);

impl Configuration for Config {
    fn identity(&self) -> Result<String, BoxedDiagnostic> {
        Ok(self.0.to_owned())
    }

    fn configure(&self, _: &Path, build_dir: &Path, _: &[(String, String)]) -> Result<(), BoxedDiagnostic> {
        let path = build_dir.join(".config");
        let text = format!("CONFIG_MODULES=y\n{}\n", self.0);
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        fs::write(&path, text).unwrap();
        Ok(())
    }
}
