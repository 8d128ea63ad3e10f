//! Traces: recordings of every port access, for replay and comparison.
//!
//! # Format
//!
//! All numbers are little-endian. A header of 16 bytes: the magic `VMDTRACE`, and the rate of the
//! TSC in Hz (64 bits, 0 if not known). Then records of 16 bytes each:
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 8 | TSC ticks since the guest's latest start |
//! | 8 | 2 | port |
//! | 10 | 1 | bits 0–1: width (0 byte, 1 word, 2 dword); bit 2: OUT; bit 3: the guest was (re)started here, and the other fields are 0 |
//! | 11 | 1 | number of the virtual CPU |
//! | 12 | 4 | EAX: the value written by OUT, or EAX after IN |

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use devices::bus::{Direction, PortAccess, Width};

use crate::error::Error;

const MAGIC: [u8; 8] = *b"VMDTRACE";
const RECORD: usize = 16;
const OUT: u8 = 1 << 2;
const START: u8 = 1 << 3;

/// A record of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The guest was started.
    Start,
    /// A port access.
    Access {
        /// TSC ticks since the guest's latest start.
        ticks: u64,
        /// Number of the vCPU, from 0.
        vcpu: u8,
        /// The access after the device answered it.
        access: PortAccess,
    },
}

impl Record {
    fn encode(self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        match self {
            Self::Start => bytes[10] = START,
            Self::Access { ticks, vcpu, access } => {
                let width = match access.width {
                    Width::Byte => 0,
                    Width::Word => 1,
                    Width::Dword => 2,
                };
                bytes[..8].copy_from_slice(&ticks.to_le_bytes());
                bytes[8..10].copy_from_slice(&access.port.to_le_bytes());
                bytes[10] = width | if access.direction == Direction::Out { OUT } else { 0 };
                bytes[11] = vcpu;
                bytes[12..].copy_from_slice(&access.eax.to_le_bytes());
            }
        }
        bytes
    }

    fn decode(bytes: &[u8; RECORD]) -> Option<Self> {
        let flags = bytes[10];
        if flags & START != 0 {
            return Some(Self::Start);
        }
        let width = match flags & 3 {
            0 => Width::Byte,
            1 => Width::Word,
            2 => Width::Dword,
            _ => return None,
        };
        let direction = if flags & OUT == 0 { Direction::In } else { Direction::Out };
        let port = u16::from_le_bytes([bytes[8], bytes[9]]);
        let eax = u32::from_le_bytes(bytes[12..].try_into().ok()?);
        let ticks = u64::from_le_bytes(bytes[..8].try_into().ok()?);
        Some(Self::Access { ticks, vcpu: bytes[11], access: PortAccess { port, width, direction, eax } })
    }
}

/// Writes a trace. The file is complete once the writer is finished or dropped.
#[derive(Debug)]
pub struct Writer {
    file: BufWriter<File>,
    path: PathBuf,
    failed: bool,
}

impl Writer {
    /// Creates the trace at `path`, or overwrites the file there.
    pub fn create(path: &Path, tsc_hz: u64) -> Result<Self, Error> {
        let error = |source| Error::Write { what: "the trace", path: path.to_owned(), source };
        let mut file = BufWriter::with_capacity(1 << 16, File::create(path).map_err(error)?);
        file.write_all(&MAGIC).and_then(|()| file.write_all(&tsc_hz.to_le_bytes())).map_err(error)?;
        Ok(Self { file, path: path.to_owned(), failed: false })
    }

    /// Adds a record. After the first error (a full disk), which is logged, further records are
    /// dropped.
    pub fn add(&mut self, record: Record) {
        if self.failed {
            return;
        }
        if let Err(error) = self.file.write_all(&record.encode()) {
            self.failed = true;
            tracing::error!(path = %self.path.display(), %error, "cannot write the trace: it ends here");
        }
    }

    /// Writes buffered records to the file.
    pub fn finish(mut self) -> Result<(), Error> {
        self.file.flush().map_err(|source| Error::Write {
            what: "the trace",
            path: self.path.clone(),
            source,
        })
    }
}

/// Reads a trace. Returns the rate of the TSC in Hz (0 if unknown) and the records.
pub fn read(path: &Path) -> Result<(u64, Vec<Record>), Error> {
    let error = |source| Error::Read { what: "a trace", path: path.to_owned(), source };
    let invalid = |text| error(io::Error::new(io::ErrorKind::InvalidData, text));
    let mut file = BufReader::new(File::open(path).map_err(error)?);
    let mut header = [0; 16];
    file.read_exact(&mut header).map_err(error)?;
    if header[..8] != MAGIC {
        return Err(invalid("it does not start with VMDTRACE"));
    }
    let tsc_hz = u64::from_le_bytes(header[8..].try_into().unwrap());
    let mut body = Vec::new();
    file.read_to_end(&mut body).map_err(error)?;
    // A killed process may have left a part of a record at the end.
    let (records, _) = body.as_chunks::<RECORD>();
    let records = records.iter().map(Record::decode).collect::<Option<_>>();
    Ok((tsc_hz, records.ok_or_else(|| invalid("it has a record of no known width"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(ticks: u64, access: PortAccess) -> Record {
        Record::Access { ticks, vcpu: 63, access }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let records = [
            Record::Start,
            access(0, PortAccess::output(0x3f8, Width::Byte, 0x41)),
            access(1 << 40, PortAccess::input(0xcfc, Width::Dword, 0x0666_0b5d)),
            access(u64::MAX, PortAccess::input(0xffff, Width::Word, u32::MAX)),
        ];
        let mut writer = Writer::create(&path, 2_500_000_000).unwrap();
        for record in records {
            writer.add(record);
        }
        writer.finish().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 16 + 4 * 16);
        assert_eq!(read(&path).unwrap(), (2_500_000_000, records.to_vec()));
    }

    #[test]
    fn a_cut_end_is_forgiven_and_rubbish_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let mut bytes = MAGIC.to_vec();
        bytes.extend([0; 8]);
        bytes.extend(Record::Start.encode());
        bytes.extend([1, 2, 3]);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read(&path).unwrap(), (0, vec![Record::Start]));
        bytes[16 + 10] = 3;
        std::fs::write(&path, &bytes).unwrap();
        assert!(read(&path).is_err());
        std::fs::write(&path, b"VMDTRAC").unwrap();
        assert!(read(&path).is_err());
        assert!(read(&dir.path().join("none")).is_err());
    }
}
