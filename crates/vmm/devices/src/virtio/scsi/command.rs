//! The CD-ROM drive: vmd's answers to SCSI commands.

use crate::{virtio::disk::Disk, warning_limit::warn_limited};

/// Length of a request's header in bytes: LUN 8, tag 8, attributes 3, CDB 32.
pub(super) const REQUEST: usize = 51;
/// Length of a response's header in bytes: sense length 4, residual 4, qualifier 2, status,
/// response, sense 96.
pub(super) const RESPONSE: usize = 108;
/// The response of a target that does not exist.
const BAD_TARGET: u8 = 3;

/// Bytes in a block.
const BLOCK: u64 = 2048;
/// The largest read in bytes; a larger one gets no answer (`vioscsi_start_read`).
const MAX_READ: u64 = 1 << 26;
/// Offset of the CDB in a request.
const CDB: usize = 19;

/// SCSI status CHECK CONDITION: sense data follows.
const CHECK_CONDITION: u8 = 2;
/// Length in bytes of the sense data that vmd returns.
const SENSE: u32 = 14;

/// Operation codes.
mod op {
    pub(super) const TEST_UNIT_READY: u8 = 0x00;
    pub(super) const READ_6: u8 = 0x08;
    pub(super) const INQUIRY: u8 = 0x12;
    pub(super) const MODE_SENSE_6: u8 = 0x1a;
    pub(super) const START_STOP: u8 = 0x1b;
    pub(super) const PREVENT_ALLOW: u8 = 0x1e;
    pub(super) const READ_CAPACITY_10: u8 = 0x25;
    pub(super) const READ_10: u8 = 0x28;
    pub(super) const READ_TOC: u8 = 0x43;
    pub(super) const GET_CONFIGURATION: u8 = 0x46;
    pub(super) const GET_EVENT_STATUS: u8 = 0x4a;
    pub(super) const READ_DISC_INFORMATION: u8 = 0x51;
    pub(super) const MODE_SENSE_10: u8 = 0x5a;
    pub(super) const READ_CAPACITY_16: u8 = 0x9e;
    pub(super) const REPORT_LUNS: u8 = 0xa0;
    pub(super) const MECHANISM_STATUS: u8 = 0xbd;
}

/// Sense key and additional sense code.
#[derive(Clone, Copy)]
enum Sense {
    /// A field of the CDB is not supported.
    IllegalField = 0x05_24,
    /// The block does not exist.
    OutOfRange = 0x05_21,
    /// The image could not be read: "medium not present".
    Unreadable = 0x03_3a,
}

/// Data for the descriptors after the response.
pub(super) enum Data {
    None,
    /// All of it goes into the first descriptor.
    Whole(Vec<u8>),
    /// Each descriptor is filled to its length.
    Spread(Vec<u8>),
}

impl Data {
    /// Its length in bytes.
    pub(super) const fn length(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Whole(bytes) | Self::Spread(bytes) => bytes.len(),
        }
    }
}

/// Outcome of a request.
pub(super) enum Reply {
    /// The request is answered.
    Answer([u8; RESPONSE], Data),
    /// vmd leaves the request in the queue; the next notification processes it again.
    GivenUp,
    /// vmd does not know the command: the request is returned with nothing written and without an
    /// interrupt.
    Unsupported,
}

impl Reply {
    pub(super) fn bad_target() -> Self {
        let mut response = [0; RESPONSE];
        response[11] = BAD_TARGET;
        Self::Answer(response, Data::None)
    }

    fn good(data: Data) -> Self {
        Self::Answer([0; RESPONSE], data)
    }

    fn check(sense: Sense) -> Self {
        let mut response = [0; RESPONSE];
        response[..4].copy_from_slice(&SENSE.to_le_bytes());
        response[10] = CHECK_CONDITION;
        let [key, code] = (sense as u16).to_be_bytes();
        // Current error, key, code; the qualifier is always 0.
        response[12] = 0x70;
        response[14] = key;
        response[24] = code;
        Self::Answer(response, Data::None)
    }
}

/// The drive and its medium.
pub(super) struct CdRom {
    disk: Box<dyn Disk>,
    blocks: u64,
    locked: bool,
}

impl CdRom {
    pub(super) fn new(disk: Box<dyn Disk>) -> Self {
        let blocks = disk.size() / BLOCK;
        Self { disk, blocks, locked: false }
    }

    pub(super) const fn blocks(&self) -> u64 {
        self.blocks
    }

    pub(super) const fn unlock(&mut self) {
        self.locked = false;
    }

    /// Executes a command. vmd does not implement READ(12) and READ(16).
    pub(super) fn execute(&mut self, request: &[u8; REQUEST]) -> Reply {
        let cdb = &request[CDB..];
        match cdb[0] {
            op::TEST_UNIT_READY | op::START_STOP => Reply::good(Data::None),
            op::PREVENT_ALLOW => {
                // Each command inverts the lock, whatever its operand.
                self.locked = !self.locked;
                Reply::good(Data::None)
            }
            op::READ_6 => {
                let block = u32::from_be_bytes([0, cdb[1] & 0x1f, cdb[2], cdb[3]]);
                self.read(block, cdb[4].into(), Data::Whole)
            }
            op::READ_10 => {
                let block = u32::from_be_bytes([cdb[2], cdb[3], cdb[4], cdb[5]]);
                self.read(block, u16::from_be_bytes([cdb[7], cdb[8]]), Data::Spread)
            }
            op::INQUIRY => whole(inquiry()),
            op::READ_CAPACITY_10 => {
                let mut data = self.last_block().to_be_bytes().to_vec();
                data.extend((BLOCK as u32).to_be_bytes());
                whole(data)
            }
            op::READ_CAPACITY_16 => {
                let mut data = self.blocks.wrapping_sub(1).to_be_bytes().to_vec();
                data.extend((BLOCK as u32).to_be_bytes());
                data.resize(32, 0);
                whole(data)
            }
            op::MODE_SENSE_6 => mode_sense(cdb[2], 4),
            op::MODE_SENSE_10 => mode_sense(cdb[2], 8),
            op::READ_TOC => self.table_of_contents(cdb[6]),
            op::GET_EVENT_STATUS => self.event_status(cdb[1]),
            op::GET_CONFIGURATION => whole(self.configuration()),
            op::READ_DISC_INFORMATION => Reply::check(Sense::IllegalField),
            op::MECHANISM_STATUS => whole(vec![0; 8]),
            op::REPORT_LUNS => report_luns(request),
            _ => Reply::Unsupported,
        }
    }

    /// The number of the last block, cut to 32 bits; all ones for an image without a block.
    fn last_block(&self) -> u32 {
        if self.blocks >= u32::MAX.into() { u32::MAX } else { self.blocks.wrapping_sub(1) as u32 }
    }

    /// Reads blocks. A length of 0 means no block, also in READ(6), where SCSI defines 256.
    fn read(&mut self, block: u32, count: u16, data: impl FnOnce(Vec<u8>) -> Data) -> Reply {
        if u64::from(block) > self.blocks.wrapping_sub(1) {
            return Reply::check(Sense::OutOfRange);
        }
        let length = u64::from(count) * BLOCK;
        if length > MAX_READ {
            return Reply::GivenUp;
        }
        let mut bytes = vec![0; length as usize];
        match self.disk.read_at(&mut bytes, u64::from(block) * BLOCK) {
            Ok(read) if read == bytes.len() => Reply::good(data(bytes)),
            Ok(_) => Reply::check(Sense::Unreadable),
            Err(error) => {
                warn_limited!(%error, block, "the CD could not be read");
                Reply::check(Sense::Unreadable)
            }
        }
    }

    /// The table of contents: one track and the lead-out, in blocks even if minutes, seconds and
    /// frames are requested. 20 bytes are written even if only the lead-out is requested and the
    /// header says 12.
    fn table_of_contents(&self, from_track: u8) -> Reply {
        const LEAD_OUT: u8 = 0xaa;
        const DATA_TRACK: u8 = 0x14;
        if from_track > 1 && from_track != LEAD_OUT {
            return Reply::check(Sense::IllegalField);
        }
        let mut data = vec![0, 0, 1, 1];
        if from_track <= 1 {
            data.extend([0, DATA_TRACK, 1, 0, 0, 0, 0, 0]);
        }
        data.extend([0, DATA_TRACK, LEAD_OUT, 0]);
        data.extend((self.blocks as u32).to_be_bytes());
        data[1] = data.len() as u8 - 2;
        data.resize(20, 0);
        whole(data)
    }

    /// A power event with the lock state, whatever class of events is requested.
    fn event_status(&self, polled: u8) -> Reply {
        if polled == 0 {
            return Reply::check(Sense::IllegalField);
        }
        let state = if self.locked { 1 } else { 2 };
        whole(vec![0, 6, 2, 4, 0, state, 0, 0])
    }

    /// The features profile list, core, morphing, removable medium and random read, of a drive
    /// without a profile.
    fn configuration(&self) -> Vec<u8> {
        let mut data = vec![0, 0, 0, 0x34, 0, 0, 0xff, 0xff];
        data.extend([0, 0x00, 0x03, 4, 0xff, 0xff, 1, 0]);
        data.extend([0, 0x01, 0x11, 8, 0, 0, 0, 1, 0, 0, 0, 0]);
        data.extend([0, 0x02, 0x07, 4, 2, 0, 0, 0]);
        data.extend([0, 0x04, 0x03, 4, 9, 0, 0, 0]);
        data.extend([0, 0x10, 0x03, 8]);
        // vmd stores the number of the last block in place of the block size.
        data.extend(self.last_block().to_be_bytes());
        data.extend([0, 0x10, 0, 0]);
        data
    }
}

fn whole(data: Vec<u8>) -> Reply {
    Reply::good(Data::Whole(data))
}

/// The answer to every INQUIRY, vital product data pages included: 96 bytes however few are
/// requested.
fn inquiry() -> Vec<u8> {
    // CD-ROM, removable, no standard claimed, SCSI-2 format, 31 additional bytes.
    let mut data = vec![0x05, 0x80, 0, 2, 31, 0, 0, 0];
    data.extend(b"OpenBSD VMM CD-ROM      001 ");
    data.resize(96, 0);
    data
}

/// The current values of the error recovery and the capabilities page, after a header of `header`
/// bytes (4 or 8).
///
/// The lengths are vmd's: the header counts only a part of itself, and the capabilities page
/// announces 30 or 34 for its 30 bytes.
fn mode_sense(page: u8, header: usize) -> Reply {
    const MEDIUM_TYPE: u8 = 0x70;
    let control = page & 0xc0;
    let body = match page & 0x3f {
        0x01 if control == 0 => {
            let mut body = vec![0; 12];
            body[..4].copy_from_slice(&[0x01, 0x0a, 0, 5]);
            body
        }
        0x2a if control == 0 => {
            let mut body = vec![0; 32];
            body[..3].copy_from_slice(&[0x2a, (header + 32 - 6) as u8, 0x08]);
            // Volume levels.
            body[11] = 2;
            body
        }
        _ => return Reply::check(Sense::IllegalField),
    };
    let mut data = vec![0; header];
    let length = (header + body.len()) as u8;
    if header == 4 {
        data[..2].copy_from_slice(&[length - 1, MEDIUM_TYPE]);
    } else {
        data[..3].copy_from_slice(&[0, length - 2, MEDIUM_TYPE]);
    }
    data.extend(body);
    whole(data)
}

/// Reports one LUN and returns the LUN of the request in virtio's format.
fn report_luns(request: &[u8; REQUEST]) -> Reply {
    let cdb = &request[CDB..];
    if u32::from_be_bytes([cdb[6], cdb[7], cdb[8], cdb[9]]) < 16 {
        return Reply::check(Sense::IllegalField);
    }
    let mut data = vec![0, 0, 0, 8, 0, 0, 0, 0];
    data.extend(&request[..8]);
    whole(data)
}
