//! Hypercalls of a guest of vmm(4), which has none: the instruction raises #UD, except that one
//! number ends the VM from 8.0 on.
//!
//! KVM answers the host vendor's own instruction itself. Only its interception for Xen guests
//! passes hypercalls to user space; the VMM asks for it where a number matters.

use vmd_release::Capabilities;

/// RAX of the hypercall that ends the VM (`vmx_handle_exit`, `svm_handle_exit` in vmm_machdep.c of
/// 8.0).
const END: u64 = 0x1234;

/// RAX after any other hypercall: KVM's answer to an unknown number, -ENOSYS. vmm raises #UD.
pub(crate) const ENOSYS: u64 = (-1000_i64).cast_unsigned();

/// Whether a hypercall of `number` (RAX) at privilege level `cpl` (0 to 3) ends the VM.
pub(crate) const fn ends_vm(capabilities: &Capabilities, number: u64, cpl: u32) -> bool {
    capabilities.hypercall_ends_vm && number == END && cpl == 0
}

#[cfg(test)]
mod tests {
    use vmd_release::Generation;

    use super::*;

    #[test]
    fn only_0x1234_of_a_kernel_ends_the_vm_and_only_from_8_0_on() {
        let ends = |generation: Generation, number, cpl| ends_vm(&generation.capabilities(), number, cpl);
        assert_eq!(Generation::ALL.map(|generation| ends(generation, END, 0)), [false, false, false, true]);
        assert!(!ends(Generation::V8_0, END, 3));
        assert!(!ends(Generation::V8_0, 9, 0));
    }
}
