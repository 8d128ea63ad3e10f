//! Symbols of the guest's kernel, from a System.map or a vmlinux's symbol table.

use std::{fs, path::Path};

use crate::error::Error;

/// A kernel's symbols, by address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Symbols {
    /// Sorted by address.
    table: Vec<(u64, String)>,
}

impl Symbols {
    /// Reads a `System.map` or an ELF `vmlinux` with a symbol table.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let bytes = fs::read(path).map_err(|source| Error::Read {
            what: "the kernel's symbols",
            path: path.to_owned(),
            source,
        })?;
        let table = if bytes.starts_with(b"\x7fELF") { elf_symbols(&bytes) } else { system_map(&bytes) };
        let symbols = table.map(Self::new).unwrap_or_default();
        if symbols.table.is_empty() {
            return Err(Error::NoSymbols { path: path.to_owned() });
        }
        Ok(symbols)
    }

    fn new(mut table: Vec<(u64, String)>) -> Self {
        // Below are per-CPU offsets, where RIP never is. The highest address is the only one in the
        // placeholder System.map of Debian's kernel packages.
        table.retain(|(address, _)| (0xffff_0000_0000_0000..u64::MAX).contains(address));
        table.sort();
        Self { table }
    }

    /// Symbol and offset of `address`, as `name+0x10`. Needs a kernel booted with `nokaslr`: KASLR
    /// moves it away from these addresses.
    pub(crate) fn name(&self, address: u64) -> Option<String> {
        let after = self.table.partition_point(|(start, _)| *start <= address);
        let (start, name) = self.table.get(after.checked_sub(1)?)?;
        // No function is 1 MiB long: the address is not in the kernel.
        (address - start < 1 << 20).then(|| format!("{name}+{:#x}", address - start))
    }
}

/// `address type name` lines.
fn system_map(bytes: &[u8]) -> Option<Vec<(u64, String)>> {
    std::str::from_utf8(bytes)
        .ok()?
        .lines()
        .map(|line| {
            let mut words = line.split_ascii_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let name = words.nth(1)?;
            Some((address, name.to_owned()))
        })
        .collect()
}

/// The functions in a 64-bit little-endian ELF file's `.symtab`.
fn elf_symbols(bytes: &[u8]) -> Option<Vec<(u64, String)>> {
    const SHT_SYMTAB: u32 = 2;
    let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?));
    let offset_at = |at| usize::try_from(u64_at(at)?).ok();
    let (sections, entry_size, count) =
        (offset_at(0x28)?, usize::from(u16_at(0x3a)?), usize::from(u16_at(0x3c)?));
    let section = |index: usize| sections.checked_add(index.checked_mul(entry_size)?);
    let symtab = (0..count).filter_map(section).find(|&at| u32_at(at + 4) == Some(SHT_SYMTAB))?;
    let strings = section(usize::try_from(u32_at(symtab + 0x28)?).ok()?)?;
    let strings = bytes.get(offset_at(strings + 0x18)?..)?;
    let (start, size) = (offset_at(symtab + 0x18)?, offset_at(symtab + 0x20)?);
    let mut table = Vec::new();
    for at in (start..start.checked_add(size)?).step_by(24) {
        let name = strings.get(usize::try_from(u32_at(at)?).ok()?..)?;
        let name = String::from_utf8_lossy(name.split(|&b| b == 0).next()?).into_owned();
        if !name.is_empty() {
            table.push((u64_at(at + 8)?, name));
        }
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn symbols(text: &str) -> Result<Symbols, Error> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        Symbols::read(file.path())
    }

    const MAP: &str = "0000000000000000 D __per_cpu_start\n\
                       ffffffff81000000 T _text\n\
                       ffffffff81000110 t do_one_thing\n\
                       ffffffff81002000 T another\t[module]\n";

    #[test]
    fn addresses_get_the_symbol_before_them() {
        let symbols = symbols(MAP).unwrap();
        assert_eq!(symbols.name(0xffff_ffff_8100_0115).unwrap(), "do_one_thing+0x5");
        assert_eq!(symbols.name(0xffff_ffff_8100_2000).unwrap(), "another+0x0");
    }

    #[test]
    fn addresses_outside_the_kernel_have_no_name() {
        let symbols = symbols(MAP).unwrap();
        for address in [0, 0xf_fff0, 0xffff_ffff_80ff_ffff, 0xffff_ffff_f000_0000] {
            assert_eq!(symbols.name(address), None, "{address:#x}");
        }
    }

    #[test]
    fn other_files_are_refused() {
        let stub = "ffffffffffffffff B The real System.map is in the linux-image-7.3.4-dbg package\n";
        for text in [stub, "", "hello\n", "\x7fELF\u{2}\u{1}", "zzzz T x\n"] {
            assert!(symbols(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_vmlinux_is_read_through_its_symbol_table() {
        // ELF header, then three sections (null, .symtab, .strtab), two symbols, their names.
        let mut elf = vec![0u8; 64 + 3 * 64];
        elf[..4].copy_from_slice(b"\x7fELF");
        elf[0x28..0x30].copy_from_slice(&64u64.to_le_bytes());
        elf[0x3a..0x3c].copy_from_slice(&64u16.to_le_bytes());
        elf[0x3c..0x3e].copy_from_slice(&3u16.to_le_bytes());
        let (symtab, strtab) = (128, 192);
        let symbols_at = elf.len();
        let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
        put(symtab + 4, &2u32.to_le_bytes());
        put(symtab + 0x18, &(symbols_at as u64).to_le_bytes());
        put(symtab + 0x20, &48u64.to_le_bytes());
        put(symtab + 0x28, &2u32.to_le_bytes());
        put(strtab + 0x18, &(symbols_at as u64 + 48).to_le_bytes());
        let mut symbol = [0u8; 48];
        symbol[24..28].copy_from_slice(&1u32.to_le_bytes());
        symbol[32..40].copy_from_slice(&0xffff_ffff_8100_0000u64.to_le_bytes());
        elf.extend(symbol);
        elf.extend(b"\0start_kernel\0");
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&elf).unwrap();
        assert_eq!(
            Symbols::read(file.path()).unwrap().name(0xffff_ffff_8100_0004).unwrap(),
            "start_kernel+0x4"
        );
    }
}
