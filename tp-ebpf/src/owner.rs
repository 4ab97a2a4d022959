//! Whose task this is.

use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task,
    bpf_probe_read_kernel,
};
use tp_ebpf_common::{Counter, scope};

use crate::maps::setting;

/// A task of the kernel itself, for example an NFS mount's.
const PF_KTHREAD: u32 = 0x0020_0000;

#[inline(always)]
pub(crate) fn is_exempt() -> bool {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;

    tgid == setting!(exempt)[0] || tgid == setting!(exempt)[1]
}

/// Succeeds when the current task belongs to the session.
///
/// The real uid alone would let a set-user-id program take names and answers from the session of
/// the user who started it.
#[inline(always)]
pub(crate) fn check_task() -> Result<(), Counter> {
    // SAFETY: no preconditions.
    let task = unsafe { bpf_get_current_task() };
    if read::<u32>(task, setting!(offsets.task_flags))? & PF_KTHREAD != 0 {
        return Err(Counter::KernelThread);
    }
    if setting!(scope) & scope::USER != 0 {
        let cred = read::<u64>(task, setting!(offsets.task_cred))?;
        check_credentials(cred)?;
    }
    if setting!(scope) & scope::CGROUP != 0 {
        // SAFETY: no preconditions.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(setting!(cgroup_level) as i32) };
        if id != setting!(cgroup_id) {
            return Err(Counter::OtherCgroup);
        }
    }

    Ok(())
}

#[inline(always)]
fn check_credentials(cred: u64) -> Result<(), Counter> {
    let uid = setting!(uid);
    if read::<u32>(cred, setting!(offsets.cred_uid))? != uid {
        return Err(Counter::OtherUser);
    }
    let same = read::<u32>(cred, setting!(offsets.cred_euid))? == uid
        && read::<u32>(cred, setting!(offsets.cred_fsuid))? == uid;
    let gained = read::<u64>(cred, setting!(offsets.cred_cap_permitted))? & !setting!(capabilities);
    if !same || gained != 0 {
        return Err(Counter::Privileged);
    }

    Ok(())
}

#[inline(always)]
fn read<T>(base: u64, offset: u32) -> Result<T, Counter> {
    let address = (base + u64::from(offset)) as *const T;

    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_kernel(address) }.map_err(|_| Counter::Privileged)
}
