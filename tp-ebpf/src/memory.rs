//! Reads kernel memory at offsets that the loader has looked up.

use aya_ebpf::helpers::bpf_probe_read_kernel;

#[inline(always)]
pub(crate) fn read<T>(base: u64, offset: u32) -> Option<T> {
    let address = (base + u64::from(offset)) as *const T;

    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_kernel(address) }.ok()
}
