//! Probe of /dev/kvm: runs a small program in a scratch VM.
//!
//! Some hosts (sandboxes, clouds) have a partial emulation of /dev/kvm that answers ioctls but
//! cannot run a kernel. The program does what kernels do, under a time limit.

use std::{
    arch::x86_64::{__cpuid, __cpuid_count},
    sync::mpsc,
    thread,
    time::Instant,
};

use devices::bus::{Direction, Width};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use crate::error::Unusable;
use crate::{
    boot,
    error::{Error, PROBE_TIME_LIMIT},
    kvm::vcpu::{self, Exit, Vcpu},
};

/// Optional features of the host's KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmAbilities {
    /// The guest's TSC can be the host's, with offset 0, as under vmm.
    pub tsc_without_offset: bool,
    /// The processor, and guests, have BMI2.
    pub bmi2: bool,
}

/// Runs the program in a scratch VM. It checks that CPUID answers what was set, that code runs in
/// long mode, that BMI2 works if the processor has it, that HLT exits, and that an injected
/// interrupt wakes. Takes at most 5 s.
pub fn probe() -> Result<KvmAbilities, Unusable> {
    let (send, receive) = mpsc::channel();
    // If KVM_RUN never returns, the thread stays behind.
    thread::Builder::new()
        .name("kvm-probe".into())
        .spawn(move || send.send(run()))
        .map_err(|error| Unusable::SetupFailed { reason: error.to_string() })?;
    receive.recv_timeout(PROBE_TIME_LIMIT).unwrap_or(Err(Unusable::Hangs))
}

/// EBX of CPUID leaf 0x40000000 in the scratch VM.
const SIGNATURE: u32 = u32::from_le_bytes(*b"vmml");
/// Ports of the program, and the values that it writes to them.
const CPUID_PORT: u16 = 0x10;
const BMI2_PORT: u16 = 0x11;
const BMI2_RESULT: u32 = 0x00a0_00b0;
const HANDLER_PORT: u16 = 0x12;
const WOKEN_PORT: u16 = 0x13;
const HANDLER_RESULT: u32 = 0x1417;
const WOKEN_RESULT: u32 = 0x600d;
/// Vector of the interrupt that wakes the program from HLT.
const VECTOR: u8 = 0x20;

const CODE: u64 = 0x1000;
const IDT: u64 = 0x3000;
const MEMORY: usize = 0x1_0000;

/// `mov eax, 0x40000000; cpuid; mov eax, ebx; out CPUID_PORT, eax`
const ASK_CPUID: &[u8] = &[0xb8, 0, 0, 0, 0x40, 0x0f, 0xa2, 0x89, 0xd8, 0xe7, CPUID_PORT as u8];
/// `mov eax, 0x00f000f0; mov ecx, 0xab; pdep eax, ecx, eax; out BMI2_PORT, eax`
const TRY_BMI2: &[u8] =
    &[0xb8, 0xf0, 0, 0xf0, 0, 0xb9, 0xab, 0, 0, 0, 0xc4, 0xe2, 0x73, 0xf5, 0xc0, 0xe7, BMI2_PORT as u8];
/// `sti; hlt; mov eax, WOKEN_RESULT; out WOKEN_PORT, eax; cli; hlt`
const WAIT: &[u8] = &[0xfb, 0xf4, 0xb8, 0x0d, 0x60, 0, 0, 0xe7, WOKEN_PORT as u8, 0xfa, 0xf4];
/// `mov eax, HANDLER_RESULT; out HANDLER_PORT, eax; iretq`
const HANDLER: &[u8] = &[0xb8, 0x17, 0x14, 0, 0, 0xe7, HANDLER_PORT as u8, 0x48, 0xcf];

fn run() -> Result<KvmAbilities, Unusable> {
    let kvm = Kvm::new()
        .map_err(|errno| Unusable::NoKvm { source: std::io::Error::from_raw_os_error(errno.errno()) })?;
    let setup_failed = |error: Error| Unusable::SetupFailed {
        reason: match std::error::Error::source(&error) {
            Some(source) => format!("{error} ({source})"),
            None => error.to_string(),
        },
    };
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(|errno| Unusable::SetupFailed {
        reason: format!("cannot list the supported CPUID: {errno}"),
    })?;
    // From the processor, not from KVM: a KVM that hides BMI2 does not run guests on the processor.
    let bmi2 = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx & 1 << 8 != 0;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])
        .map_err(|error| Unusable::SetupFailed { reason: error.to_string() })?;
    write_program(&memory, bmi2).map_err(|error| Unusable::SetupFailed { reason: error.to_string() })?;
    let vm = vcpu::create_vm(&kvm, &memory).map_err(setup_failed)?;
    let mut vcpu = Vcpu::new(vcpu::create(&vm, 0).map_err(setup_failed)?, &memory);
    vcpu.fd().set_cpuid2(&with_signature(&cpuid)).map_err(|errno| Unusable::SetupFailed {
        reason: format!("cannot set the guest's CPUID: {errno}"),
    })?;
    let (regs, mut sregs) = boot::long_mode_state(CODE, &vcpu.sregs().map_err(setup_failed)?);
    sregs.idt.base = IDT;
    sregs.idt.limit = 0xfff;
    vcpu.set_registers(&regs, &sregs).map_err(setup_failed)?;
    let tsc_without_offset = vcpu.set_tsc_offset(0).map_err(setup_failed)?;
    watch(&mut vcpu, bmi2)?;
    Ok(KvmAbilities { tsc_without_offset, bmi2 })
}

fn write_program(memory: &GuestMemoryMmap, bmi2: bool) -> Result<(), vm_memory::GuestMemoryError> {
    boot::write_tables(memory)?;
    let mut code = ASK_CPUID.to_vec();
    if bmi2 {
        code.extend(TRY_BMI2);
    }
    code.extend(WAIT);
    let handler = CODE + code.len() as u64;
    code.extend(HANDLER);
    memory.write_slice(&code, GuestAddress(CODE))?;
    // An interrupt gate in the 64-bit code segment; the handler lies below 64 KiB.
    let gate = 0x8e00_0000_0000 | u64::from(boot::CODE_SELECTOR) << 16 | handler;
    memory.write_obj(gate.to_le(), GuestAddress(IDT + 16 * u64::from(VECTOR)))
}

fn with_signature(supported: &CpuId) -> CpuId {
    let mut entries: Vec<kvm_cpuid_entry2> =
        supported.as_slice().iter().filter(|e| e.function >> 16 != 0x4000).copied().collect();
    entries.push(kvm_cpuid_entry2 { function: 0x4000_0000, ebx: SIGNATURE, ..Default::default() });
    CpuId::from_entries(&entries).expect("no more entries than KVM offers itself")
}

/// Runs the program and compares its steps with the expected ones.
fn watch(vcpu: &mut Vcpu, bmi2: bool) -> Result<(), Unusable> {
    let mut expected = vec![Step::Out(CPUID_PORT, SIGNATURE)];
    if bmi2 {
        expected.push(Step::Out(BMI2_PORT, BMI2_RESULT));
    }
    expected.extend([
        Step::Halt,
        Step::Out(HANDLER_PORT, HANDLER_RESULT),
        Step::Out(WOKEN_PORT, WOKEN_RESULT),
        Step::Halt,
    ]);
    let start = Instant::now();
    for expected in expected {
        let step = loop {
            match vcpu.run() {
                Ok(Exit::Interrupted) if start.elapsed() < PROBE_TIME_LIMIT => {}
                Ok(exit) => break Step::of(exit, vcpu.eax()),
                Err(error) => return Err(Unusable::WrongResult { what: format!("KVM_RUN failed: {error}") }),
            }
        };
        if step != expected {
            return Err(Unusable::WrongResult { what: format!("{step} instead of {expected}") });
        }
        if step == Step::Halt && vcpu.interrupts_enabled() {
            vcpu.inject(VECTOR).map_err(|error| Unusable::SetupFailed { reason: error.to_string() })?;
        }
    }
    Ok(())
}

/// A step of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Out(u16, u32),
    Halt,
    Other(String),
}

impl Step {
    fn of(exit: Exit, eax: u32) -> Self {
        match exit {
            Exit::Io { port, width: Width::Dword, direction: Direction::Out, count: 1 } => {
                Self::Out(port, eax)
            }
            Exit::Hlt => Self::Halt,
            other => Self::Other(format!("{other:?}")),
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Out(CPUID_PORT, value) => write!(f, "CPUID answering {value:#x}"),
            Self::Out(BMI2_PORT, value) => write!(f, "PDEP computing {value:#x}"),
            Self::Out(HANDLER_PORT, value) => write!(f, "the interrupt's handler running ({value:#x})"),
            Self::Out(port, value) => write!(f, "OUT of {value:#x} to port {port:#x}"),
            Self::Halt => f.write_str("HLT stopping"),
            Self::Other(exit) => write!(f, "an exit {exit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_where_its_tables_say() {
        for bmi2 in [false, true] {
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
            write_program(&memory, bmi2).unwrap();
            let gate: u64 = memory.read_obj(GuestAddress(IDT + 16 * 0x20)).unwrap();
            let handler = gate & 0xffff;
            let mut code = vec![0; HANDLER.len()];
            memory.read_slice(&mut code, GuestAddress(handler)).unwrap();
            assert_eq!(code, HANDLER);
            assert_eq!(gate >> 16 & 0xffff, u64::from(boot::CODE_SELECTOR));
        }
    }

    #[test]
    fn steps_are_told_apart() {
        let out = |width| Exit::Io { port: CPUID_PORT, width, direction: Direction::Out, count: 1 };
        assert_eq!(Step::of(out(Width::Dword), 7), Step::Out(CPUID_PORT, 7));
        assert!(matches!(Step::of(out(Width::Byte), 7), Step::Other(_)));
        assert_eq!(Step::of(Exit::Hlt, 0), Step::Halt);
    }

    #[test]
    fn a_kvm_is_judged_in_time_whatever_it_is() {
        // What the verdict is depends on the host; that there is one does not.
        match probe() {
            Ok(abilities) => println!("{abilities:?}"),
            Err(error) => println!("{error}"),
        }
    }
}
