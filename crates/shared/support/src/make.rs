//! The kernel's make with a clean environment.
//!
//! The kernel's Makefiles read dozens of variables from the environment: LLVM, KCFLAGS, KBUILD_VERBOSE, LOCALVERSION, …
//! A variable of the caller's shell, or of the make that started this program, must not change a configuration or a
//! kernel. So make gets an allow-list of variables and everything else on its command line.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::Command,
};

use crate::run;

/// Variables that are passed on: where programs, caches and temporary files are. None of them names a tool or a flag of
/// the kernel's build.
const ALLOWED: &[&str] = &[
    "HOME",
    "USER",
    "LOGNAME",
    "PATH",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "LIBCLANG_PATH",
    "LD_LIBRARY_PATH",
];

/// Variables of ccache, which decide where its cache is and not what comes out of the compiler.
const ALLOWED_PREFIX: &str = "CCACHE_";

/// `make -C tree O=objects` with `variables` on its command line, and of this process's environment only what cannot
/// change its result.
pub fn kernel_make<'a>(
    tree: &Path,
    objects: Option<&Path>,
    variables: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Command {
    let mut make = run::command("make");
    make.env_clear().envs(allowed(std::env::vars_os())).env("LC_ALL", "C.UTF-8");
    make.arg("-C").arg(tree);
    if let Some(objects) = objects {
        make.arg(format!("O={}", objects.display()));
    }
    make.args(variables.into_iter().map(|(name, value)| format!("{name}={value}")));
    make
}

fn allowed(
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = (OsString, OsString)> {
    let is_allowed = |name: &OsStr| {
        name.to_str().is_some_and(|name| ALLOWED.contains(&name) || name.starts_with(ALLOWED_PREFIX))
    };
    environment.filter(move |(name, _)| is_allowed(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(names: &[&str]) -> Vec<String> {
        let environment = names.iter().map(|name| (OsString::from(name), OsString::from("x")));
        allowed(environment).map(|(name, _)| name.into_string().unwrap()).collect()
    }

    #[test]
    fn places_of_programs_and_caches_are_passed_on() {
        let names = ["PATH", "HOME", "CCACHE_DIR", "RUSTUP_TOOLCHAIN"];
        assert_eq!(passed(&names), names);
    }

    #[test]
    fn what_could_change_a_kernel_is_not_passed_on() {
        let names =
            ["LLVM", "KCFLAGS", "CC", "HOSTCC", "ARCH", "MAKEFLAGS", "KBUILD_OUTPUT", "O", "V", "SHELL"];
        assert_eq!(passed(&names), [""; 0]);
    }
}
