//! The running program as init of the helper VM: checks that it is static, and strips what the kernel does not load.

use std::{fs, path::Path};

use object::{
    LittleEndian,
    elf::{FileHeader64, PT_INTERP, PT_LOAD},
    read::elf::{FileHeader as _, ProgramHeader as _},
};

use crate::{Error, Result};

/// Offset and width in bytes of the ELF64 header's `e_shoff`, and of `e_shnum` together with `e_shstrndx`.
const SECTION_FIELDS: [(usize, usize); 2] = [(0x28, 8), (0x3c, 4)];

/// The bytes of a statically linked program without its sections, symbols and debugging information, which are most
/// of a debug build. Fails for a dynamic program.
pub fn static_program(path: &Path) -> Result<Vec<u8>> {
    loadable(path, fs::read(path).map_err(|e| Error::io("read", path, e))?)
}

fn loadable(path: &Path, mut program: Vec<u8>) -> Result<Vec<u8>> {
    let bad = |problem: String| Error::NotElf { path: path.to_owned(), problem };
    let broken = |e: object::read::Error| bad(e.to_string());
    let mut end = 0;
    {
        let data = &*program;
        let header = FileHeader64::<LittleEndian>::parse(data).map_err(broken)?;
        let endian = header.endian().map_err(broken)?;
        if header.e_machine(endian) != object::elf::EM_X86_64 {
            return Err(bad("it is not for x86-64".to_owned()));
        }
        for segment in header.program_headers(endian, data).map_err(broken)? {
            match segment.p_type(endian) {
                PT_INTERP => return Err(Error::Dynamic { path: path.to_owned() }),
                PT_LOAD => end = end.max(segment.p_offset(endian).saturating_add(segment.p_filesz(endian))),
                _ => {}
            }
        }
    }
    let end = usize::try_from(end).ok().filter(|end| (64..=program.len()).contains(end));
    program.truncate(end.ok_or_else(|| bad("its segments lie outside the file".to_owned()))?);
    for (offset, width) in SECTION_FIELDS {
        program[offset..offset + width].fill(0);
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF64 with one PT_LOAD of 256 bytes, maybe a PT_INTERP, and 100 bytes of sections behind it.
    fn elf(interpreter: bool) -> Vec<u8> {
        let mut elf = vec![0; 356];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[0x12] = 62;
        elf[0x14] = 1;
        elf[0x20] = 64;
        elf[0x28..0x30].copy_from_slice(&256u64.to_le_bytes());
        elf[0x34] = 64;
        elf[0x36] = 56;
        elf[0x38] = 2;
        elf[0x3c] = 1;
        elf[64] = 1;
        elf[64 + 32..64 + 40].copy_from_slice(&256u64.to_le_bytes());
        elf[120] = if interpreter { 3 } else { 4 };
        elf
    }

    #[test]
    fn sections_are_left_out_of_a_static_program() {
        let program = loadable(Path::new("vmmlinux"), elf(false)).unwrap();
        assert_eq!(program.len(), 256);
        assert_eq!(program[0x28..0x30], [0; 8]);
        assert_eq!(program[0x3c..0x40], [0; 4]);
    }

    #[test]
    fn a_dynamic_program_is_refused_with_what_to_do() {
        let error = loadable(Path::new("vmmlinux"), elf(true)).unwrap_err();
        assert!(matches!(error, Error::Dynamic { .. }));
        assert!(miette::Diagnostic::help(&error).unwrap().to_string().contains("crt-static"));
    }

    #[test]
    fn an_invalid_elf_file_is_refused() {
        let mut other = elf(false);
        other[0x12] = 183;
        let mut short = elf(false);
        short.truncate(200);
        for rubbish in [vec![], b"#!/bin/sh\n".to_vec(), other, short] {
            assert!(matches!(loadable(Path::new("x"), rubbish), Err(Error::NotElf { .. })));
        }
    }

    #[test]
    fn the_tests_themselves_are_static() {
        let me = Path::new("/proc/self/exe");
        assert!(static_program(me).unwrap().len() as u64 <= fs::metadata(me).unwrap().len());
    }
}
