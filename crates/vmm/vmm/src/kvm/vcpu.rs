//! VMs and vCPUs of KVM, narrowed to what the VMM needs.

#![allow(unsafe_code)]

use std::{
    io,
    sync::{Arc, atomic::AtomicU8},
};

use devices::bus::{Direction, Width};
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_EXIT_REASON_INVAL, KVM_MSR_EXIT_REASON_UNKNOWN, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO,
    Msrs, kvm_debugregs, kvm_device_attr, kvm_enable_cap, kvm_interrupt, kvm_msr_entry, kvm_regs, kvm_run,
    kvm_sregs, kvm_userspace_memory_region, kvm_vcpu_events, kvm_xen_hvm_config,
};
use kvm_ioctls::{Cap, Kvm, SyncReg, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::{
    error::Error,
    run_control::{self, Registration, VcpuRunControl},
};

vmm_sys_util::ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
vmm_sys_util::ioctl_iow_nr!(KVM_XEN_HVM_CONFIG, KVMIO, 0x7a, kvm_xen_hvm_config);
vmm_sys_util::ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
vmm_sys_util::ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, KVMIO, 0xe3, kvm_device_attr);

/// Number of the MSR EFER.
const EFER: u32 = 0xc000_0080;

/// DR6 and DR7 after INIT: no breakpoint is set, and none was hit.
const DR6_INIT: u64 = 0xffff_0ff0;
const DR7_INIT: u64 = 0x400;

/// Address of the three pages that KVM needs for itself on Intel processors without unrestricted
/// guest mode. They lie in the PCI hole, which no guest of vmd uses.
const TSS_ADDRESS: usize = 0xfbff_d000;

/// Creates a VM with `memory` and enables the features that the VMM relies on.
pub(crate) fn create_vm(kvm: &Kvm, memory: &GuestMemoryMmap) -> Result<VmFd, Error> {
    let vm = kvm.create_vm().map_err(Error::kvm("create a VM (KVM_CREATE_VM)"))?;
    for (cap, what) in [
        (Cap::SyncRegs, "share registers (KVM_CAP_SYNC_REGS)"),
        (Cap::ImmediateExit, "exit immediately (KVM_CAP_IMMEDIATE_EXIT)"),
        (Cap::X86UserSpaceMsr, "exit for MSRs (KVM_CAP_X86_USER_SPACE_MSR)"),
        (Cap::X86MsrFilter, "filter MSRs (KVM_CAP_X86_MSR_FILTER)"),
    ] {
        if !vm.check_extension(cap) {
            return Err(Error::Kvm { what, source: io::ErrorKind::Unsupported.into() });
        }
    }
    let enable = |cap, value: u32| {
        let mut enable = kvm_enable_cap { cap, ..Default::default() };
        enable.args[0] = u64::from(value);
        vm.enable_cap(&enable)
    };
    let reasons = KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN;
    enable(KVM_CAP_X86_USER_SPACE_MSR, reasons)
        .map_err(Error::kvm("exit for MSRs (KVM_CAP_X86_USER_SPACE_MSR)"))?;
    // VMCALL on AMD and VMMCALL on Intel fault as under vmm instead of being patched into the
    // other. KVM answers the host vendor's own instruction itself, with -ENOSYS where vmm injects
    // #UD, and cannot be told not to.
    let quirks = vm.check_extension_raw(KVM_CAP_DISABLE_QUIRKS2.into());
    let hypercall_quirk = kvm_bindings::KVM_X86_QUIRK_FIX_HYPERCALL_INSN;
    if u32::try_from(quirks).is_ok_and(|quirks| quirks & hypercall_quirk != 0) {
        enable(KVM_CAP_DISABLE_QUIRKS2, hypercall_quirk)
            .map_err(Error::kvm("leave hypercalls unpatched (KVM_CAP_DISABLE_QUIRKS2)"))?;
    }
    // Has no effect on AMD and on Intel with unrestricted guest mode.
    vm.set_tss_address(TSS_ADDRESS).map_err(Error::kvm("place its own pages (KVM_SET_TSS_ADDR)"))?;
    for (slot, region) in memory.iter().enumerate() {
        let slot = kvm_userspace_memory_region {
            slot: u32::try_from(slot).unwrap(),
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the region is mapped for its whole length, and `Vcpu`, without which no guest
        // runs, keeps the mapping alive.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(Error::kvm("map the guest's memory (KVM_SET_USER_MEMORY_REGION)"))?;
    }
    Ok(vm)
}

/// Has KVM pass hypercalls on to user space, as it does for Xen guests. Returns whether it can.
pub(crate) fn intercept_hypercalls(vm: &VmFd) -> bool {
    let config =
        kvm_xen_hvm_config { flags: kvm_bindings::KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, ..Default::default() };
    let flags = vm.check_extension_raw(kvm_bindings::KVM_CAP_XEN_HVM.into());
    u32::try_from(flags).is_ok_and(|flags| flags & config.flags != 0)
        // SAFETY: the descriptor is a VM's, and KVM only reads the structure.
        && unsafe { ioctl_with_ref(vm, KVM_XEN_HVM_CONFIG(), &config) } == 0
}

/// Creates vCPU `number` of `vm`. Any thread may run it.
pub(crate) fn create(vm: &VmFd, number: u8) -> Result<VcpuFd, Error> {
    vm.create_vcpu(number.into()).map_err(Error::kvm("create a vCPU (KVM_CREATE_VCPU)"))
}

/// Why KVM_RUN returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// IN or OUT.
    Io { port: u16, width: Width, direction: Direction, count: u32 },
    /// An access to an address without memory; `value` is what it writes.
    Mmio { address: u64, width: usize, value: Option<u64> },
    /// HLT.
    Hlt,
    /// The guest can take an interrupt now.
    Window,
    /// Triple fault.
    TripleFault,
    /// A kick, or a change of CR8.
    Interrupted,
    /// RDMSR.
    ReadMsr { index: u32 },
    /// WRMSR.
    WriteMsr { index: u32, value: u64 },
    /// A hypercall of `number` (RAX) at privilege level `cpl`.
    Hypercall { number: u64, cpl: u32 },
    /// KVM cannot continue.
    Broken(String),
}

/// A vCPU and the memory that it runs in.
pub(crate) struct Vcpu {
    registration: Option<Registration>,
    fd: VcpuFd,
    /// The guest may still run code whose segments have bases: KVM shares the system registers at
    /// every exit.
    segmented: bool,
    _memory: GuestMemoryMmap,
}

impl Vcpu {
    /// The vCPU `fd` of a VM with `memory`.
    pub(crate) fn new(mut fd: VcpuFd, memory: &GuestMemoryMmap) -> Self {
        fd.set_sync_valid_reg(SyncReg::Register);
        fd.set_sync_valid_reg(SyncReg::SystemRegister);
        Self { registration: None, fd, segmented: true, _memory: memory.clone() }
    }

    /// KVM's vCPU, to set CPUID, registers and MSRs.
    pub(crate) const fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Sets the TSC offset: guest TSC − host TSC in ticks, modulo 2^64; 0 under vmm. Returns
    /// whether KVM can (Linux 5.16).
    pub(crate) fn set_tsc_offset(&self, offset: u64) -> Result<bool, Error> {
        let attribute = kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: u64::from(KVM_VCPU_TSC_OFFSET),
            addr: &raw const offset as u64,
            flags: 0,
        };
        // SAFETY: the descriptor is a vCPU's, and KVM only looks at the attribute's numbers.
        if unsafe { ioctl_with_ref(&self.fd, KVM_HAS_DEVICE_ATTR(), &attribute) } != 0 {
            return Ok(false);
        }
        // SAFETY: as above; KVM reads the 64 bits at `addr`, which outlive the call.
        if unsafe { ioctl_with_ref(&self.fd, KVM_SET_DEVICE_ATTR(), &attribute) } != 0 {
            let source = io::Error::last_os_error();
            return Err(Error::Kvm { what: "set the TSC offset (KVM_VCPU_TSC_OFFSET)", source });
        }
        Ok(true)
    }

    /// Sets general and system registers.
    pub(crate) fn set_registers(&mut self, regs: &kvm_regs, sregs: &kvm_sregs) -> Result<(), Error> {
        self.fd.set_sregs(sregs).map_err(Error::kvm("set the system registers (KVM_SET_SREGS)"))?;
        self.fd.set_regs(regs).map_err(Error::kvm("set the registers (KVM_SET_REGS)"))
    }

    /// The system registers.
    pub(crate) fn sregs(&self) -> Result<kvm_sregs, Error> {
        self.fd.get_sregs().map_err(Error::kvm("get the system registers (KVM_GET_SREGS)"))
    }

    /// Resets the vCPU to `regs` and `sregs`, as INIT and SIPI do: completes the last exit and
    /// discards pending events. The caller kicks it first, or else it would run the guest.
    pub(crate) fn reset(&mut self, regs: &kvm_regs, sregs: &kvm_sregs) -> Result<(), Error> {
        // KVM completes the access of the last exit at the next KVM_RUN, which would change the new
        // registers.
        while self.run()? != Exit::Interrupted {}
        self.fd
            .set_vcpu_events(&kvm_vcpu_events::default())
            .map_err(Error::kvm("set the pending events (KVM_SET_VCPU_EVENTS)"))?;
        let debug = kvm_debugregs { dr6: DR6_INIT, dr7: DR7_INIT, ..Default::default() };
        self.fd.set_debug_regs(&debug).map_err(Error::kvm("set the debug registers (KVM_SET_DEBUGREGS)"))?;
        self.set_registers(regs, sregs)?;
        // These describe the last exit.
        let run = self.fd.get_kvm_run();
        run.ready_for_interrupt_injection = 0;
        run.if_flag = 0;
        self.segmented = true;
        self.fd.set_sync_valid_reg(SyncReg::SystemRegister);
        Ok(())
    }

    /// Registers the calling thread with `run_control` as the one that runs this vCPU, number
    /// `number`.
    pub(crate) fn register(&mut self, run_control: &Arc<VcpuRunControl>, number: u8) {
        let immediate_exit = (&raw mut self.fd.get_kvm_run().immediate_exit).cast::<AtomicU8>().cast_const();
        // SAFETY: the flag is part of the mapping that `fd` holds, and the registration is dropped
        // before `fd`: fields are dropped in the order of their declaration.
        self.registration = Some(unsafe { run_control::register(run_control, number, immediate_exit) });
    }

    /// Runs the guest until it exits.
    pub(crate) fn run(&mut self) -> Result<Exit, Error> {
        let exit = match self.fd.run() {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => return Ok(self.io()),
            Ok(VcpuExit::MmioRead(address, data)) => Exit::Mmio { address, width: data.len(), value: None },
            Ok(VcpuExit::MmioWrite(address, data)) => {
                let mut value = [0; 8];
                value[..data.len()].copy_from_slice(data);
                Exit::Mmio { address, width: data.len(), value: Some(u64::from_le_bytes(value)) }
            }
            Ok(VcpuExit::Hlt) => Exit::Hlt,
            Ok(VcpuExit::IrqWindowOpen) => Exit::Window,
            Ok(VcpuExit::Shutdown) => Exit::TripleFault,
            // The guest has lowered CR8, which may let an interrupt through.
            Ok(VcpuExit::Intr | VcpuExit::SetTpr) => Exit::Interrupted,
            Ok(VcpuExit::X86Rdmsr(msr)) => Exit::ReadMsr { index: msr.index },
            Ok(VcpuExit::X86Wrmsr(msr)) => Exit::WriteMsr { index: msr.index, value: msr.data },
            Ok(VcpuExit::InternalError) => return Ok(Exit::Broken(self.internal_error())),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                Exit::Broken(format!("the processor refused to enter the guest (reason {reason:#x})"))
            }
            Ok(VcpuExit::Unsupported(kvm_bindings::KVM_EXIT_XEN)) => return Ok(self.hypercall()),
            Ok(other) => Exit::Broken(format!("KVM stopped with {other:?}")),
            Err(errno) if matches!(errno.errno(), libc::EINTR | libc::EAGAIN) => Exit::Interrupted,
            Err(errno) => {
                let source = io::Error::from_raw_os_error(errno.errno());
                return Err(Error::Kvm { what: "run the guest (KVM_RUN)", source });
            }
        };
        Ok(exit)
    }

    fn io(&mut self) -> Exit {
        let run: &kvm_run = self.fd.get_kvm_run();
        // SAFETY: called only after an I/O exit, for which KVM fills this member of the union.
        let io = unsafe { run.__bindgen_anon_1.io };
        let direction = if u32::from(io.direction) == kvm_bindings::KVM_EXIT_IO_IN {
            Direction::In
        } else {
            Direction::Out
        };
        match Width::from_bytes(usize::from(io.size)) {
            Some(width) => Exit::Io { port: io.port, width, direction, count: io.count },
            None => Exit::Broken(format!("a port access of {} bytes", io.size)),
        }
    }

    fn hypercall(&mut self) -> Exit {
        // SAFETY: called only after an exit for Xen, for which KVM fills this member of the union;
        // its only type is a hypercall.
        let call = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.xen.u.hcall };
        Exit::Hypercall { number: call.input, cpl: call.cpl }
    }

    fn internal_error(&mut self) -> String {
        // SAFETY: called only after an internal error, for which KVM fills this member of the
        // union.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        match suberror {
            kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => {
                "KVM cannot emulate the instruction there, or could not fetch it".to_owned()
            }
            kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => {
                "an interrupt or exception could not be delivered: its descriptors or stack are not in memory"
                    .to_owned()
            }
            other => format!("KVM internal error {other}"),
        }
    }

    /// RAX at the last exit.
    fn rax(&mut self) -> u64 {
        self.fd.sync_regs_mut().regs.rax
    }

    /// Linear address of the instruction of the last exit.
    pub(crate) fn linear_rip(&mut self) -> u64 {
        let base = if self.segmented { self.fd.sync_regs_mut().sregs.cs.base } else { 0 };
        let rip = base.wrapping_add(self.fd.sync_regs_mut().regs.rip);
        // Only 64-bit code, whose segments have no bases, runs in the upper half.
        if self.segmented && rip >> 63 != 0 {
            self.segmented = false;
            self.fd.clear_sync_valid_reg(SyncReg::SystemRegister);
        }
        rip
    }

    /// Whether RFLAGS.IF was set at the last exit.
    pub(crate) fn interrupts_enabled(&mut self) -> bool {
        self.fd.get_kvm_run().if_flag != 0
    }

    /// Completes an IN: sets RAX to `eax` and clears its upper half, as vmd's 32-bit copy of it
    /// does (`vei_data` in vmmvar.h).
    pub(crate) fn finish_in(&mut self, width: Width, eax: u32) {
        let before = self.rax();
        self.put_io_data(&eax.to_le_bytes()[..width.bytes()]);
        // KVM merges the item into RAX as the processor would. All other bits are set here.
        let mask = u64::from(width.mask());
        let merged =
            if width == Width::Dword { u64::from(eax) } else { before & !mask | u64::from(eax) & mask };
        if merged != u64::from(eax) {
            self.fd.sync_regs_mut().regs.rax = u64::from(eax);
            self.fd.set_sync_dirty_reg(SyncReg::Register);
        }
    }

    /// Completes a string IN with the bytes of all its items.
    pub(crate) fn finish_string_in(&mut self, bytes: &[u8]) {
        self.put_io_data(bytes);
    }

    fn put_io_data(&mut self, bytes: &[u8]) {
        let run: &mut kvm_run = self.fd.get_kvm_run();
        // SAFETY: called only after an I/O exit, for which KVM fills this member of the union.
        let io = unsafe { run.__bindgen_anon_1.io };
        assert!(bytes.len() <= usize::from(io.size) * io.count as usize, "no more bytes than the access has");
        let offset = usize::try_from(io.data_offset).expect("the shared mapping has a few pages");
        let at = (&raw mut *run).cast::<u8>().wrapping_add(offset);
        // SAFETY: KVM puts the data area, which has room for `count` items of `size` bytes, inside
        // the shared mapping that starts with `run`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
    }

    /// Completes an [`Exit::Mmio`] that reads.
    pub(crate) fn finish_mmio_read(&mut self, value: u64) {
        let run = self.fd.get_kvm_run();
        // SAFETY: called only after an MMIO exit, for which KVM uses this member of the union.
        let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
        mmio.data = value.to_le_bytes();
    }

    /// The guest's CR8.
    pub(crate) fn cr8(&mut self) -> u8 {
        self.fd.get_kvm_run().cr8 as u8
    }

    /// Sets the guest's CR8.
    pub(crate) fn set_cr8(&mut self, value: u8) {
        self.fd.get_kvm_run().cr8 = value.into();
    }

    /// EAX at the last exit, which an OUT writes.
    pub(crate) fn eax(&mut self) -> u32 {
        self.rax() as u32
    }

    /// Completes an RDMSR; `None` injects #GP.
    pub(crate) fn finish_read_msr(&mut self, value: Option<u64>) {
        let run = self.fd.get_kvm_run();
        // SAFETY: called only after an MSR exit, for which KVM uses this member of the union.
        let msr = unsafe { &mut run.__bindgen_anon_1.msr };
        msr.data = value.unwrap_or(0);
        msr.error = u8::from(value.is_none());
    }

    /// Completes a WRMSR; `false` injects #GP.
    pub(crate) fn finish_write_msr(&mut self, accepted: bool) {
        let run = self.fd.get_kvm_run();
        // SAFETY: called only after an MSR exit, for which KVM uses this member of the union.
        let msr = unsafe { &mut run.__bindgen_anon_1.msr };
        msr.error = u8::from(!accepted);
    }

    /// Completes a hypercall with `result` in RAX.
    pub(crate) fn finish_hypercall(&mut self, result: u64) {
        let run = self.fd.get_kvm_run();
        // SAFETY: called only after an exit for a hypercall, for which KVM uses this member of the
        // union.
        let call = unsafe { &mut run.__bindgen_anon_1.xen.u.hcall };
        call.result = result;
    }

    /// Sets EFER. Returns `false` if KVM refuses it for a bit that the guest's CPUID does not show.
    pub(crate) fn set_efer(&self, efer: u64) -> bool {
        let entry = kvm_msr_entry { index: EFER, data: efer, ..Default::default() };
        Msrs::from_entries(&[entry]).is_ok_and(|msrs| self.fd.set_msrs(&msrs) == Ok(1))
    }

    /// Whether an interrupt can be injected now.
    pub(crate) fn ready_for_interrupt(&mut self) -> bool {
        self.fd.get_kvm_run().ready_for_interrupt_injection != 0
    }

    /// Requests an exit as soon as an interrupt can be injected, or none.
    pub(crate) fn want_interrupt_window(&mut self, want: bool) {
        self.fd.get_kvm_run().request_interrupt_window = u8::from(want);
    }

    /// Injects interrupt `vector` on the next entry.
    pub(crate) fn inject(&self, vector: u8) -> Result<(), Error> {
        let interrupt = kvm_interrupt { irq: u32::from(vector) };
        // SAFETY: the descriptor is a vCPU's and the argument is what the ioctl reads.
        let result = unsafe { ioctl_with_ref(&self.fd, KVM_INTERRUPT(), &interrupt) };
        if result == 0 {
            return Ok(());
        }
        Err(Error::Kvm { what: "inject an interrupt (KVM_INTERRUPT)", source: io::Error::last_os_error() })
    }
}
