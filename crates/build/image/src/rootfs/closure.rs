//! Programs of this machine for a root file system that has no packages: with the libraries they are linked to.

use std::path::{Path, PathBuf};

use crate::{
    error::{Error, Result},
    tool::Tools,
    tree::Tree,
};

/// Copies the programs to usr/bin and their libraries to where the dynamic linker will look for them.
pub(super) fn copy(tools: &Tools, tree: &mut Tree, programs: &[&'static str]) -> Result<()> {
    for name in programs {
        let program = tools
            .find(name)
            .ok_or_else(|| tools.require(&[name]).expect_err("it was not found a moment ago"))?;
        let mut command = tools.command("ldd")?;
        let listed = tools.run(command.arg(&program), "ldd", "listing a program's libraries", &program)?;
        for library in libraries(&String::from_utf8_lossy(&listed.stdout)) {
            let path = library.strip_prefix("/").unwrap_or(&library);
            // Merged /usr: /lib is a link in the tree.
            let path = if path.starts_with("usr") { path.to_owned() } else { Path::new("usr").join(path) };
            let source = library.canonicalize().map_err(Error::io("read", &library))?;
            tree.copy(path, 0o755, &source);
        }
        tree.copy(Path::new("usr/bin").join(name), 0o755, &program);
    }
    Ok(())
}

/// The paths in what ldd prints: `name => path (address)`, or `path (address)` for the dynamic linker.
fn libraries(listing: &str) -> Vec<PathBuf> {
    listing
        .lines()
        .filter_map(|line| {
            let line = line.rsplit("=>").next()?.trim();
            let path = line.split(" (").next()?.trim();
            path.starts_with('/').then(|| PathBuf::from(path))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_paths_are_read_from_a_listing() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                       \tlibfdisk.so.1 => /lib/x86_64-linux-gnu/libfdisk.so.1 (0x00007f01)\n\
                       \tlibc.so.6 => /usr/lib64/libc.so.6 (0x00007f02)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f03)\n";
        let expected =
            ["/lib/x86_64-linux-gnu/libfdisk.so.1", "/usr/lib64/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries(listing), expected.map(PathBuf::from));
        assert!(libraries("\tstatically linked\n").is_empty());
    }

    #[test]
    fn a_program_comes_with_its_libraries() {
        let mut tree = Tree::default();
        copy(&Tools::default(), &mut tree, &["sfdisk"]).unwrap();
        let paths = tree.paths();
        for part in ["usr/bin/sfdisk", "libfdisk.so.1", "libc.so.6", "usr/lib64/ld-linux-x86-64.so.2"] {
            assert!(paths.iter().any(|p| p.ends_with(part)), "{part}: {paths:?}");
        }
    }
}
