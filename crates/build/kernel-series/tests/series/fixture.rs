//! A kernel in name, whose Makefile answers the targets that the check asks for, and a stack of two patches for it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use kernel_series::{Check, Compile, Kind, Release, Report, Stack, Toolchain};
use support::{cache::Cache, progress::Quiet};
use tempfile::TempDir;

/// The kernel's files. `fast` is the only driver, `CONFIG_OURS` the option that patches add.
const FILES: &[(&str, &str)] = &[
    (
        "Makefile",
        r"MAKEFLAGS += -rR
VERSION = 7
PATCHLEVEL = 3
SUBLEVEL = 4
EXTRAVERSION =

allnoconfig x86_64_defconfig:
	@mkdir -p $(O)
	@grep -v '^#' $(KCONFIG_ALLCONFIG) > $(O)/.config || true
	@echo CONFIG_SUM=y >> $(O)/.config
	@test $@ = allnoconfig || echo CONFIG_DEFAULT=y >> $(O)/.config

olddefconfig:
	@sort -u -o $(O)/.config $(O)/.config

# Symbols that no Kconfig file defines are ignored.
syncconfig:
	@mkdir -p $(O)/include/config
	@: > $(O)/include/config/auto.conf
	@for s in $$(sed -n 's/^config //p' Kconfig); do grep ^CONFIG_$$s= $(O)/.config >> $(O)/include/config/auto.conf || true; done
	@sed 's/^/#define /; s/=y/ 1/' $(O)/include/config/auto.conf > $(O)/include/config.h

prepare:

%.o: FORCE
	@mkdir -p $(O)/$(@D)
	@$(CC) -Iinclude -include $(O)/include/config.h -Wall -Werror -c -o $(O)/$@ $*.c

FORCE:
",
    ),
    ("Kconfig", "config SUM\n\nconfig DEFAULT\n"),
    ("include/linux/sum.h", "int sum(int a, int b);\n"),
    ("lib/Makefile", "obj-$(CONFIG_SUM) += sum.o\n"),
    ("lib/sum.c", "#include <linux/sum.h>\n\nint sum(int a, int b)\n{\n\treturn a + b;\n}\n"),
    ("drivers/Makefile", "obj-y += misc/\n"),
    ("drivers/misc/Makefile", "obj-$(CONFIG_SUM) += fast.o\n"),
    (
        "drivers/misc/fast.c",
        "#include <linux/sum.h>\n\nint fast(void)\n{\n\treturn sum(1, 2);\n}\n\nint last(void)\n{\n\tfast();\n\n\tfast();\n\n\treturn 0;\n}\n",
    ),
    (
        "scripts/checkpatch.pl",
        "my $f = $ARGV[-1];\nopen(F, $f);\nwhile (<F>) { if (/^\\+.*FIXME/) { print \"$f:$.: WARNING:TODO: fix it\\n\"; $bad = 1; } }\nexit($bad);\n",
    ),
    (
        "scripts/get_maintainer.pl",
        "print \"Sum Maintainer <sum\\@kernel.org> (maintainer:SUM)\\n\";\nprint \"linux-kernel\\@vger.kernel.org (open list)\\n\";\n",
    ),
];

/// What the patches of the stack make of the kernel, one after the other.
pub(crate) type Edit = (&'static str, &'static str, &'static str);

/// Adds the option, and a function that only it has.
pub(crate) const FIRST: &[Edit] = &[
    ("Kconfig", "config DEFAULT\n", "config DEFAULT\n\nconfig OURS\n"),
    (
        "lib/sum.c",
        "\treturn a + b;\n}\n",
        "\treturn a + b;\n}\n\n#ifdef CONFIG_OURS\nint difference(int a, int b)\n{\n\treturn a - b;\n}\n#endif\n",
    ),
    (
        "include/linux/sum.h",
        "int sum(int a, int b);\n",
        "int sum(int a, int b);\n#ifdef CONFIG_OURS\nint difference(int a, int b);\n#else\nstatic inline int difference(int a, int b)\n{\n\treturn 0;\n}\n#endif\n",
    ),
];

/// Uses it, in one hunk with two insertions.
pub(crate) const SECOND: &[Edit] = &[
    ("drivers/misc/fast.c", "\tfast();\n", "\tfast();\n#ifdef CONFIG_OURS\n\tfast();\n#endif\n"),
    (
        "drivers/misc/fast.c",
        "\treturn 0;\n",
        "#ifdef CONFIG_OURS\n\treturn difference(2, 1);\n#endif\n\treturn 0;\n",
    ),
];

/// What the second patch makes of its file's last lines.
pub(crate) const USED: &str = "\tfast();\n#ifdef CONFIG_OURS\n\tfast();\n#endif\n\n\tfast();\n\n#ifdef CONFIG_OURS\n\treturn \
                               difference(2, 1);\n#endif\n\treturn 0;\n";

/// A place to work in.
pub(crate) struct Place {
    pub(crate) dir: TempDir,
}

impl Place {
    /// The kernel, and a stack of two patches that are in order.
    pub(crate) fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        write_files(&place.kernel());
        let stack = "[[group]]\nname = \"first\"\npurpose = \"the option\"\n\n[[group]]\nname = \"second\"\npurpose = \"its use\"\n";
        write(&place.patches().join("stack.toml"), stack);
        place.stack(&[
            ("first/0001-a.patch", "sum: Add a difference", FIRST),
            ("second/0001-b.patch", "misc: Use it", SECOND),
        ]);
        place
    }

    pub(crate) fn kernel(&self) -> PathBuf {
        self.dir.path().join("linux")
    }

    pub(crate) fn patches(&self) -> PathBuf {
        self.dir.path().join("patches")
    }

    pub(crate) fn patch(&self, name: &str) -> String {
        fs::read_to_string(self.patches().join(name)).unwrap()
    }

    /// Changes the text of a patch file.
    pub(crate) fn edit(&self, name: &str, from: &str, to: &str) {
        let text = self.patch(name);
        assert!(text.contains(from), "{text}");
        write(&self.patches().join(name), &text.replace(from, to));
    }

    /// Writes the patches that edits of the kernel make, one after the other.
    pub(crate) fn stack(&self, patches: &[(&str, &str, &[Edit])]) {
        let tree = self.dir.path().join("edited");
        let _ = fs::remove_dir_all(&tree);
        write_files(&tree);
        git(&tree, &["init", "--quiet"]);
        git(&tree, &["add", "."]);
        git(&tree, &["commit", "--quiet", "-m", "Linux"]);
        for (name, subject, edits) in patches {
            for (file, from, to) in *edits {
                let path = tree.join(file);
                let text = fs::read_to_string(&path).unwrap_or_default();
                assert!(text.contains(from), "{file}: {text}");
                write(&path, &text.replacen(from, to, 1));
            }
            git(&tree, &["add", "."]);
            git(&tree, &["commit", "--quiet", "-m", subject]);
            let text = git(&tree, &["format-patch", "-1", "--stdout", "--full-index", "--no-signature"]);
            let (_, below) = text.split_once("\n---\n").unwrap();
            write(&self.patches().join(name), &format!("Subject: {subject}\n\nIt is missing.\n---\n{below}"));
        }
    }

    pub(crate) fn release(&self) -> Release {
        Release { path: self.kernel(), version: "7.3.4".to_owned(), hash: "0123456789abcdef0123".to_owned() }
    }

    pub(crate) fn load(&self) -> Stack {
        Stack::load(&self.patches(), ["7.3", "6.12"]).map_err(miette::Report::new).unwrap()
    }

    pub(crate) fn cache(&self) -> Cache {
        Cache::at(self.dir.path().join("cache"))
    }

    /// Checks the stack on the kernel.
    pub(crate) fn check(&self) -> Report {
        self.check_with("7.3", true)
    }

    pub(crate) fn check_with(&self, series: &str, compile: bool) -> Report {
        let (stack, release, cache) = (self.load(), self.release(), self.cache());
        kernel_series::check(&Check {
            stack: &stack,
            series,
            is_default: series == "7.3",
            release: &release,
            cache: &cache,
            compile: compile.then(|| Compile {
                toolchain: Toolchain {
                    path: env::var_os("PATH").unwrap(),
                    make_vars: vec![("CC".to_owned(), "cc".to_owned())],
                    identity: "cc".to_owned(),
                    jobs: 1,
                },
                ours: "CONFIG_OURS=y\n".to_owned(),
                rust: false,
                overlay: None,
            }),
            only: None,
            progress: &Quiet,
        })
        .map_err(miette::Report::new)
        .unwrap()
    }
}

/// The findings of a report: patch and kind.
pub(crate) fn findings(report: &Report) -> Vec<(String, Kind)> {
    let of = |patch: &kernel_series::PatchReport| {
        patch.findings.iter().map(|finding| (patch.patch.clone(), finding.kind)).collect::<Vec<_>>()
    };
    report.patches.iter().flat_map(of).collect()
}

pub(crate) fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn write_files(dir: &Path) {
    for (name, text) in FILES {
        write(&dir.join(name), text);
    }
}

/// Runs git with an identity of its own; returns its output.
pub(crate) fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .arg("-C")
        .arg(dir)
        .args(["-c", "user.name=A Tester", "-c", "user.email=tester@localhost"])
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
