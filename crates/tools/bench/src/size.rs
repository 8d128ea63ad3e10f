//! `bench size`: what kernels weigh.

use std::{fs, path::Path};

use serde::Serialize;

use crate::{Error, Kernel, Report, Result, Runner, Table, numbers::number, report::Plot};

const HOW: [&str; 1] = [
    "Bytes of the files: the bzImage, and the modules that come with it (Debian's without compression would be larger \
     still). What a kernel takes in memory is in `bench boot`.",
];

/// A kernel's files, in bytes.
#[derive(Clone, Debug, Serialize)]
struct Sizes {
    kernel: String,
    image: u64,
    modules: u64,
    module_count: usize,
}

/// Weighs kernels.
pub fn run(runner: &Runner, kernels: &[Kernel]) -> Result<Report> {
    let sizes: Vec<Sizes> = kernels.iter().map(weigh).collect::<Result<_>>()?;
    let last = sizes.last().map_or(1, |sizes| sizes.image.max(1));
    let reference = format!("of {}", sizes.last().map_or("", |sizes| &sizes.kernel));
    let mut table =
        Table::new("Sizes", &["kernel", "bzImage bytes", &reference, "module files", "their bytes"]);
    let bytes = |bytes: u64| number(bytes.cast_signed());
    for sizes in &sizes {
        table.row([
            sizes.kernel.clone(),
            sizes.image.to_string(),
            format!("{:.2}", bytes(sizes.image) / bytes(last)),
            sizes.module_count.to_string(),
            sizes.modules.to_string(),
        ]);
    }
    let mut report = Report::new("size", &runner.accel, &HOW, &sizes);
    report.plots = vec![Plot::Bars {
        title: "Sizes".to_owned(),
        unit: "MB".to_owned(),
        groups: vec!["bzImage".to_owned(), "modules".to_owned()],
        series: sizes
            .iter()
            .map(|s| (s.kernel.clone(), vec![bytes(s.image) / 1e6, bytes(s.modules) / 1e6]))
            .collect(),
    }];
    report.tables = vec![table];
    Ok(report)
}

fn weigh(kernel: &Kernel) -> Result<Sizes> {
    let (mut modules, mut module_count) = (0, 0);
    let beside = kernel.image.with_file_name("modules");
    let dir = kernel.debian.as_ref().map_or(beside, |debian| debian.modules.clone());
    if dir.is_dir() {
        add_modules(&dir, &mut modules, &mut module_count)?;
    }
    Ok(Sizes { kernel: kernel.name.clone(), image: kernel.size()?, modules, module_count })
}

fn add_modules(dir: &Path, bytes: &mut u64, count: &mut usize) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        let (path, metadata) = (entry.path(), entry.metadata().map_err(Error::io("read", dir))?);
        let name = entry.file_name();
        let is_module = name.to_string_lossy().split('.').skip(1).any(|part| part == "ko");
        if metadata.is_dir() {
            add_modules(&path, bytes, count)?;
        } else if is_module {
            *bytes += metadata.len();
            *count += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_told_from_what_lies_beside_them() {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("modules/lib/7.3");
        fs::create_dir_all(&modules).unwrap();
        fs::write(dir.path().join("bzImage"), [0; 100]).unwrap();
        for (name, size) in [("a.ko", 10), ("b.ko.xz", 5), ("modules.dep", 1000)] {
            fs::write(modules.join(name), vec![0; size]).unwrap();
        }
        let sizes = weigh(&Kernel::built_in("x", dir.path()).unwrap()).unwrap();
        assert_eq!((sizes.image, sizes.modules, sizes.module_count), (100, 15, 2));
    }
}
