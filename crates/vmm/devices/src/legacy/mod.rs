//! The PC's devices at fixed I/O ports: timer, real-time clock, serial port, and QEMU's firmware
//! configuration device, of which vmd implements the file interface.

pub mod fw_cfg;
pub mod i8253;
pub mod mc146818;
pub mod ns8250;
