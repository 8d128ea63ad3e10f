//! Headers that most C files of a kernel include, parsed once and not for every file.
//!
//! Two thirds of the time that gcc spends on a small kernel goes into headers, and nearly all of its files begin with
//! the same ones. The kernel's make is given a compiler, `cc.sh`, that has `prelude.h` included before everything else,
//! or `net.h`, which has more, in the network's files, and precompiles it when the first file comes. A file is left
//! alone if its flags are not the usual ones, if it defines a macro before its last `#include`, or if it does not
//! compile with the prelude; that depends on the source and the configuration only, and whether the prelude was
//! precompiled or read as a text makes no difference to the code. So two builds are the same bit for bit still.
//! No header of a prelude may need the name of the file that is compiled (`KBUILD_MODNAME`), as <net/tcp.h> does.
//!
//! make learns of every header behind the prelude (`-fpch-deps`). A precompiled header that is older than what it was
//! made from would go unnoticed by gcc: it is thrown away before each run of make.

use std::{fs, io::ErrorKind, path::Path};

use crate::{
    cache::{write_atomically, write_script},
    error::{Error, Result},
};

const HEADERS: [(&str, &str); 2] =
    [("prelude.h", include_str!("prelude/prelude.h")), ("net.h", include_str!("prelude/net.h"))];
const COMPILER: &str = include_str!("prelude/cc.sh");

/// What decides how it compiles, for the hash over a build's inputs.
pub(crate) const IDENTITY: [&str; 3] = [HEADERS[0].1, HEADERS[1].1, COMPILER];

/// Puts the prelude and its compiler into the directory of a build, and gives make's `CC`.
///
/// `compiler` is the compiler as make would be told it; through ccache, a precompiled header is of no use.
pub(crate) fn install(build: &Path, compiler: &str) -> Result<String> {
    for (name, text) in HEADERS {
        for variant in ["kernel", "module"] {
            remove_dir(&build.join(format!("{name}.{variant}")))?;
        }
        let parsed = build.join(format!("{name}.gch"));
        remove_dir(&parsed)?;
        fs::create_dir_all(&parsed).map_err(|e| Error::io("create", &parsed, e))?;
        // Written only if it changes: every object depends on it.
        let header = build.join(name);
        if fs::read_to_string(&header).ok().as_deref() != Some(text) {
            write_atomically(&header, text.as_bytes())?;
        }
    }
    let precompile = if compiler.starts_with("ccache ") { "no" } else { "yes" };
    let place = build.display().to_string();
    let variables = [("place", place.as_str()), ("compiler", compiler), ("precompile", precompile)];
    write_script(&build.join("cc"), &variables, COMPILER)
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt,
        path::PathBuf,
        process::{Command, Output},
    };

    use super::*;

    /// A tree with the prelude's headers, of which one says that it was there and what file it is for.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            let lines = HEADERS.iter().flat_map(|(_, text)| text.lines());
            for header in lines.filter_map(|line| line.strip_prefix("#include <")) {
                tree.write(&format!("include/{}", header.trim_end_matches('>')), "");
            }
            tree.write(
                "include/linux/module.h",
                "#define PRELUDE 1\nstatic inline int one(void) { return 1; }\n",
            );
            fs::create_dir(tree.path("build")).unwrap();
            tree
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, content: &str) {
            fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
            fs::write(self.path(name), content).unwrap();
        }

        fn install(&self, compiler: &str) -> PathBuf {
            install(&self.path("build"), compiler).unwrap().into()
        }

        /// Compiles `a.c` as kbuild does, with more arguments.
        fn compile(&self, cc: &Path, source: &str, more: &[&str]) -> Output {
            self.write("a.c", source);
            Command::new(cc)
                .current_dir(self.0.path())
                .args(["-Wp,-MMD,.a.o.d", "-Iinclude", "-include", "include/linux/kconfig.h", "-D__KERNEL__"])
                .args([
                    "-mcmodel=kernel",
                    "-fno-PIE",
                    "-O2",
                    "-DKBUILD_MODNAME=\"a b\"",
                    "-D__KBUILD_MODNAME=a",
                ])
                .args(more)
                .args(["-c", "-o", "a.o", "a.c"])
                .output()
                .unwrap()
        }

        fn parsed(&self, variant: &str) -> bool {
            self.path("build/prelude.h.gch").join(variant).is_file()
        }

        fn dependencies(&self) -> String {
            fs::read_to_string(self.path(".a.o.d")).unwrap()
        }
    }

    /// Compiles only with the prelude's macro and the file's own.
    const WITH: &str = "#include <linux/sched.h>\n#ifndef PRELUDE\n#error no prelude\n#endif\n\
                        const char *name = KBUILD_MODNAME;\nint f(void) { return one(); }\n";
    /// Compiles only without the prelude.
    const WITHOUT: &str = "#define X 1\n#include <linux/sched.h>\n#ifdef PRELUDE\n#error prelude\n#endif\n";

    fn succeeded(output: &Output) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn a_usual_file_is_compiled_with_the_parsed_prelude_and_depends_on_what_is_behind_it() {
        let tree = Tree::new();
        let cc = tree.install("gcc");
        succeeded(&tree.compile(&cc, WITH, &["-Winvalid-pch", "-Werror"]));
        assert!(tree.parsed("kernel"));
        assert!(tree.dependencies().contains("include/linux/module.h"), "{}", tree.dependencies());
        let object = fs::read(tree.path("a.o")).unwrap();
        assert!(object.windows(3).any(|bytes| bytes == b"a b"));
    }

    #[test]
    fn a_prelude_that_is_read_makes_the_same_code_as_one_that_is_parsed() {
        let object = |parsed: bool| {
            let tree = Tree::new();
            let cc = tree.install("gcc");
            if !parsed {
                // As while another compilation parses it, and through ccache.
                fs::create_dir(tree.path("build/prelude.h.kernel")).unwrap();
            }
            succeeded(&tree.compile(&cc, WITH, &["-g0"]));
            assert_eq!(tree.parsed("kernel"), parsed);
            fs::read(tree.path("a.o")).unwrap()
        };
        assert_eq!(object(true), object(false));
    }

    #[test]
    fn modules_have_a_prelude_of_their_own() {
        let tree = Tree::new();
        tree.write("include/linux/module.h", "#ifdef MODULE\n#define PRELUDE 1\n#endif\nint one(void);\n");
        let cc = tree.install("gcc");
        succeeded(&tree.compile(&cc, WITH, &["-DMODULE", "-Winvalid-pch", "-Werror"]));
        assert!(tree.parsed("module") && !tree.parsed("kernel"));
    }

    #[test]
    fn the_network_has_a_prelude_of_its_own() {
        let tree = Tree::new();
        tree.write("include/net/sock.h", "#define NET 1\n");
        let cc = tree.install("gcc");
        let with_net = WITH.replace("PRELUDE", "NET");
        for (file, source) in
            [("net/ipv4/tcp", with_net.as_str()), ("drivers/net/virtio_net", &with_net), ("fs/net", WITH)]
        {
            let name = format!("-DKBUILD_MODFILE=\"{file}\"");
            succeeded(&tree.compile(&cc, source, &[&name, "-Winvalid-pch", "-Werror"]));
            assert_eq!(tree.parsed("kernel"), file == "fs/net");
        }
        assert!(tree.path("build/net.h.gch/kernel").is_file());
    }

    #[test]
    fn unusual_files_are_compiled_as_they_are() {
        let tree = Tree::new();
        let cc = tree.install("gcc");
        succeeded(&tree.compile(&cc, WITHOUT, &[]));
        let unusual = WITHOUT.trim_start_matches("#define X 1\n");
        succeeded(&tree.compile(&cc, unusual, &["-DX=1"]));
        succeeded(&tree.compile(&cc, unusual, &["-UX"]));
        // As the real-mode code of the boot loader's part.
        let boot =
            format!("#!/bin/sh\nexec '{}' -Wp,-MMD,.a.o.d -Iinclude -m16 -DX -c -o a.o a.c\n", cc.display());
        tree.write("boot", &boot);
        fs::set_permissions(tree.path("boot"), fs::Permissions::from_mode(0o755)).unwrap();
        succeeded(&tree.compile(&tree.path("boot"), unusual, &[]));
        succeeded(&tree.compile(&cc, "int nothing;\n", &[]));
        assert!(!tree.path("build/prelude.h.kernel").exists());
    }

    #[test]
    fn a_format_for_messages_and_tracepoints_leave_the_prelude_in() {
        let tree = Tree::new();
        let printk = "#ifndef pr_fmt\n#define pr_fmt(fmt) fmt\n#endif\n";
        tree.write("include/linux/sched.h", printk);
        let cc = tree.install("gcc");
        let source = format!(
            "#define pr_fmt(fmt) \"mine\"\n#define CREATE_TRACE_POINTS\n{WITH}const char *mine = pr_fmt(1);\n"
        );
        let output = tree.compile(&cc, &source, &[]);
        succeeded(&output);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert!(tree.parsed("kernel"));
    }

    #[test]
    fn a_file_that_has_no_room_for_the_prelude_is_compiled_without() {
        let tree = Tree::new();
        let cc = tree.install("gcc");
        let own =
            "#include <linux/sched.h>\nstatic int one(void) { return 2; }\nint f(void) { return one(); }\n";
        succeeded(&tree.compile(&cc, own, &[]));
        assert!(tree.parsed("kernel"));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_once() {
        let tree = Tree::new();
        let cc = tree.install("gcc");
        let output = tree.compile(&cc, "#include <linux/sched.h>\nint f(void) { return nothing; }\n", &[]);
        assert!(!output.status.success());
        assert_eq!(String::from_utf8_lossy(&output.stderr).matches("undeclared (first use").count(), 1);
        let output = tree.compile(&cc, "#include <linux/sched.h>\n#warning look out\n", &[]);
        succeeded(&output);
        assert_eq!(String::from_utf8_lossy(&output.stderr).matches("[-Wcpp]").count(), 1);
    }

    #[test]
    fn a_prelude_that_does_not_compile_is_not_used() {
        let tree = Tree::new();
        tree.write("include/linux/fs.h", "#error not for you\n");
        let cc = tree.install("gcc");
        succeeded(&tree.compile(&cc, WITHOUT.trim_start_matches("#define X 1\n"), &[]));
        assert!(tree.path("build/prelude.h.kernel/failed").exists());
    }

    #[test]
    fn a_new_run_parses_the_prelude_anew() {
        let tree = Tree::new();
        succeeded(&tree.compile(&tree.install("gcc"), WITH, &[]));
        let written = fs::metadata(tree.path("build/prelude.h")).unwrap().modified().unwrap();
        tree.write(
            "include/linux/module.h",
            "#define PRELUDE 1\nstatic inline int one(void) { return 7; }\n#define NEW\n",
        );
        let cc = tree.install("gcc");
        assert!(!tree.parsed("kernel"));
        succeeded(&tree.compile(&cc, &format!("{WITH}#ifndef NEW\n#error stale\n#endif\n"), &[]));
        assert_eq!(fs::metadata(tree.path("build/prelude.h")).unwrap().modified().unwrap(), written);
    }
}
