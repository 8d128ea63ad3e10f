//! Tests of the virtio devices through the accesses of a guest driver.

mod blk;
mod disk;
mod golden;
mod guest_driver;
mod hostile;
mod net;
mod rng;
mod scsi;
mod transport;

use super::disk::Disk;

/// A disk in memory.
#[derive(Clone, Default)]
struct MemoryDisk(std::sync::Arc<std::sync::Mutex<Memory>>);

#[derive(Default)]
struct Memory {
    bytes: Vec<u8>,
    broken: bool,
}

impl MemoryDisk {
    /// A disk of `sectors`, each filled with its number modulo 256.
    fn numbered(sectors: usize) -> Self {
        let disk = Self::default();
        disk.0.lock().unwrap().bytes = (0..sectors * 512).map(|at| (at / 512) as u8).collect();
        disk
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().bytes.clone()
    }
}

impl Disk for MemoryDisk {
    fn size(&self) -> u64 {
        self.0.lock().unwrap().bytes.len() as u64
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let memory = self.0.lock().unwrap();
        if memory.broken {
            return Err(std::io::Error::other("broken"));
        }
        let from = memory.bytes.get(offset as usize..).unwrap_or(&[]);
        let length = buffer.len().min(from.len());
        buffer[..length].copy_from_slice(&from[..length]);
        Ok(length)
    }

    fn write_at(&mut self, buffer: &[u8], offset: u64) -> std::io::Result<usize> {
        let mut memory = self.0.lock().unwrap();
        if memory.broken {
            return Err(std::io::Error::other("broken"));
        }
        let to = memory.bytes.get_mut(offset as usize..).unwrap_or(&mut []);
        let length = buffer.len().min(to.len());
        to[..length].copy_from_slice(&buffer[..length]);
        Ok(length)
    }
}
