//! The release of a kernel tree.

use std::{fs, path::Path};

use crate::tree::error::{Result, TreeError};

/// The release in a tree's top Makefile: VERSION.PATCHLEVEL.SUBLEVEL and EXTRAVERSION.
pub(crate) fn kernel_version(tree: &Path) -> Result<String> {
    let makefile = tree.join("Makefile");
    let text = fs::read_to_string(&makefile).map_err(|_| TreeError::NotAKernel {
        path: tree.to_owned(),
        problem: "no Makefile at the top of the tree".to_owned(),
    })?;
    let field = |name: &str| {
        text.lines()
            .take(20)
            .find_map(|line| Some(line.strip_prefix(name)?.trim_start().strip_prefix('=')?.trim().to_owned()))
    };
    match (field("VERSION"), field("PATCHLEVEL"), field("SUBLEVEL")) {
        (Some(version), Some(patch), Some(sub)) if !version.is_empty() => {
            Ok(format!("{version}.{patch}.{sub}{}", field("EXTRAVERSION").unwrap_or_default()))
        }
        _ => Err(TreeError::NotAKernel {
            path: tree.to_owned(),
            problem: "its Makefile does not set VERSION, PATCHLEVEL and SUBLEVEL".to_owned(),
        }),
    }
}
