//! SMBIOS tables as OpenBSD's firmware gives them to guests of vmd(8), by the System Management
//! BIOS Reference Specification 2.4. The recorded fields are from `golden/dump`; the others
//! describe a PC with one processor and one memory module.

/// BIOS version of OpenBSD 7.8's firmware.
const BIOS_VERSION: &str = "1.16.3p1-OpenBSD-vmm";

/// The structures in their order.
pub(crate) struct Tables {
    bytes: Vec<u8>,
    count: u16,
    longest: u16,
}

/// Handles by which structures refer to each other.
const MEMORY_ARRAY: u16 = 0x1000;
const MEMORY_DEVICE: u16 = 0x1100;
const ARRAY_ADDRESS: u16 = 0x1300;
/// A reference to no structure.
const NONE: u16 = 0xffff;
/// Memory structures: no error information.
const NO_ERRORS: u16 = 0xfffe;

/// Builds the fixed part of a structure.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn byte(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn word(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn dword(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn zeroes(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
}

impl Tables {
    /// The tables of a VM with `memory` bytes, whole MiB.
    pub(crate) fn new(memory: u64) -> Self {
        let mut tables = Self { bytes: Vec::new(), count: 0, longest: 0 };
        let kib = u32::try_from(memory >> 10).unwrap_or(u32::MAX);
        // 2.4 has no value above 0x7fff MiB.
        let mib = u16::try_from(memory >> 20).unwrap_or(0x7fff).min(0x7fff);

        // BIOS: vendor, version, segment, date, ROM size in 64 KiB less one, characteristics "not
        // supported", extended: enables targeted content distribution; release 1.0, no embedded
        // controller.
        let bios = Fields::default().byte(1).byte(2).word(0xe800).byte(3).byte(0).dword(1 << 3).dword(0);
        let bios = bios.byte(0).byte(1 << 2).byte(1).byte(0).byte(0xff).byte(0xff);
        tables.add(0, 0, bios, &["SeaBIOS", BIOS_VERSION, "01/01/2011"]);
        // System: maker, product, no version and serial number, no UUID, woken by the power switch,
        // no SKU and family.
        let system = Fields::default().byte(1).byte(2).byte(0).byte(0).zeroes(16).byte(6).byte(0).byte(0);
        tables.add(1, 0x100, system, &["OpenBSD", "VMM"]);
        // Chassis: maker, kind "other", no other texts; boot-up, power supply, thermal: safe;
        // security: unknown.
        let chassis = Fields::default().byte(1).byte(1).byte(0).byte(0).byte(0);
        let chassis = chassis.byte(3).byte(3).byte(3).byte(2).dword(0).byte(0).byte(0).byte(0).byte(0);
        tables.add(3, 0x300, chassis, &["OpenBSD"]);
        // Processor: socket, CPU, family "other", maker, no ID, version, voltage, clocks; populated
        // and enabled, upgrade "other", no caches, serial and part numbers.
        let processor = Fields::default().byte(1).byte(3).byte(1).byte(2).zeroes(8).byte(0).byte(0);
        let processor = processor.word(0).word(0).word(0).byte(0x41).byte(1);
        let processor = processor.word(NONE).word(NONE).word(NONE).byte(0).byte(0).byte(0);
        tables.add(4, 0x401, processor, &["CPU 1", "OpenBSD"]);
        // Memory array: other location, system memory, no error correction, as large as it is, one
        // slot.
        let array = Fields::default().byte(1).byte(3).byte(3).dword(kib).word(NO_ERRORS).word(1);
        tables.add(16, MEMORY_ARRAY, array, &[]);
        // Its one device: 64 bits wide, a DIMM of RAM, no speed, no texts but the locator.
        let device = Fields::default().word(MEMORY_ARRAY).word(NO_ERRORS).word(64).word(64).word(mib);
        let device = device.byte(9).byte(0).byte(1).byte(0).byte(7).word(0).word(0);
        let device = device.byte(0).byte(0).byte(0).byte(0);
        tables.add(17, MEMORY_DEVICE, device, &["DIMM 0"]);
        // Where the array is, as if there were no hole: first and last KiB.
        let address = Fields::default().dword(0).dword(kib.saturating_sub(1)).word(MEMORY_ARRAY).byte(1);
        tables.add(19, ARRAY_ADDRESS, address, &[]);
        // The last start: no errors.
        tables.add(32, 0x2000, Fields::default().zeroes(7), &[]);
        tables.add(127, 0x7f00, Fields::default(), &[]);
        tables
    }

    fn add(&mut self, kind: u8, handle: u16, fields: Fields, texts: &[&str]) {
        let start = self.bytes.len();
        self.bytes.push(kind);
        self.bytes.push((4 + fields.0.len()) as u8);
        self.bytes.extend(handle.to_le_bytes());
        self.bytes.extend(fields.0);
        for text in texts {
            self.bytes.extend(text.bytes());
            self.bytes.push(0);
        }
        self.bytes.extend(if texts.is_empty() { &[0, 0][..] } else { &[0] });
        self.count += 1;
        self.longest = self.longest.max((self.bytes.len() - start) as u16);
    }

    /// The entry point. The firmware fills in where it puts the tables, and the checksums.
    pub(crate) fn anchor(&self) -> Vec<u8> {
        let mut anchor = b"_SM_\0".to_vec();
        anchor.extend([31, 2, 4]);
        anchor.extend(self.longest.to_le_bytes());
        anchor.extend([0; 6]);
        anchor.extend(b"_DMI_\0");
        anchor.extend((self.bytes.len() as u16).to_le_bytes());
        anchor.extend([0; 4]);
        anchor.extend(self.count.to_le_bytes());
        anchor.push(0x24);
        anchor
    }

    /// The structures.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type, length, handle and texts of each structure, found as a guest finds them.
    fn walk(mut bytes: &[u8]) -> Vec<(u8, u8, u16, Vec<String>)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (kind, length) = (bytes[0], bytes[1]);
            let handle = u16::from_le_bytes([bytes[2], bytes[3]]);
            let texts = &bytes[usize::from(length)..];
            let end = texts.windows(2).position(|pair| pair == [0, 0]).unwrap();
            let list = String::from_utf8(texts[..end].to_vec()).unwrap();
            found.push((kind, length, handle, list.split('\0').map(str::to_owned).collect()));
            bytes = &texts[end + 2..];
        }
        found
    }

    #[test]
    fn the_structures_have_the_specifications_lengths_and_vmds_texts() {
        let found = walk(&Tables::new(512 << 20).into_bytes());
        let lengths: Vec<_> = found.iter().map(|s| (s.0, s.1)).collect();
        assert_eq!(
            lengths,
            [(0, 24), (1, 27), (3, 21), (4, 35), (16, 15), (17, 27), (19, 15), (32, 11), (127, 4)]
        );
        assert_eq!(found[0].3, ["SeaBIOS", "1.16.3p1-OpenBSD-vmm", "01/01/2011"]);
        assert_eq!(found[1].3, ["OpenBSD", "VMM"]);
        let handles: std::collections::BTreeSet<_> = found.iter().map(|s| s.2).collect();
        assert_eq!(handles.len(), found.len());
    }

    #[test]
    fn the_anchor_describes_them() {
        let tables = Tables::new(512 << 20);
        let anchor = tables.anchor();
        assert_eq!(anchor.len(), 31);
        assert_eq!(&anchor[16..21], b"_DMI_");
        assert_eq!(u16::from_le_bytes([anchor[28], anchor[29]]), 9);
        assert_eq!(usize::from(u16::from_le_bytes([anchor[22], anchor[23]])), tables.into_bytes().len());
    }

    #[test]
    fn large_memory_is_stated_as_far_as_it_can_be() {
        let bytes = Tables::new(128 << 30).into_bytes();
        let device = bytes.windows(4).position(|w| w == [17, 27, 0x00, 0x11]).unwrap();
        assert_eq!(u16::from_le_bytes([bytes[device + 12], bytes[device + 13]]), 0x7fff);
    }
}
