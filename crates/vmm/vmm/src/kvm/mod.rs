//! KVM: VMs and vCPUs with vmm's CPUID, MSRs, hypercalls, TSC and paravirtual clock, guest memory, and the
//! probe of /dev/kvm.

pub(crate) mod cpu_template;
pub(crate) mod cpuid;
pub(crate) mod hypercall;
pub(crate) mod memory;
pub(crate) mod msr;
pub mod probe;
pub(crate) mod pvclock;
pub(crate) mod tsc;
pub(crate) mod vcpu;
