//! What a kernel object consists of, for comparisons: allocated sections and their relocations.
//!
//! Names of local symbols, line numbers in them and debugging information do not take part: a line added above a
//! function does not change the function.

use std::{fs, path::Path};

use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionFlags, SymbolSection,
    elf::SHF_ALLOC,
};
use support::hash::Hash;

use crate::error::{Error, Result};

/// A hash over what an object adds to a kernel image. A file that is no ELF object is hashed as it is.
pub(crate) fn fingerprint(path: &Path) -> Result<String> {
    let data = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let mut hash = Hash::new();
    let Ok(file) = object::File::parse(&*data) else {
        hash.field(&data);
        return Ok(hash.hex());
    };
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else { continue };
        if sh_flags & u64::from(SHF_ALLOC) == 0 {
            continue;
        }
        hash.field(section.name_bytes().unwrap_or_default());
        hash.field(sh_flags.to_le_bytes());
        hash.field(section.size().to_le_bytes());
        hash.field(section.data().unwrap_or_default());
        for (offset, relocation) in section.relocations() {
            let target = match relocation.target() {
                RelocationTarget::Symbol(index) => file.symbol_by_index(index).map_or_else(
                    |_| String::new(),
                    |symbol| match symbol.section() {
                        SymbolSection::Section(section) if symbol.is_local() => {
                            let name =
                                file.section_by_index(section).and_then(|s| s.name().map(str::to_owned));
                            format!("{}+{:#x}", name.unwrap_or_default(), symbol.address())
                        }
                        _ => symbol.name().unwrap_or_default().to_owned(),
                    },
                ),
                other => format!("{other:?}"),
            };
            let entry = format!("{offset:#x} {:?} {} {target}", relocation.flags(), relocation.addend());
            hash.field(entry.as_bytes());
        }
    }
    Ok(hash.hex())
}
