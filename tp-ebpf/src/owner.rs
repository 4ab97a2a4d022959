//! Whether sockets of the current task are steered.

use aya_ebpf::helpers::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_task};
use tp_ebpf_common::{Counter, ProcessName, scope};

use crate::{maps::setting, memory};

/// A task of the kernel itself, for example an NFS mount's.
const PF_KTHREAD: u32 = 0x0020_0000;

/// True for sessions and root daemons, also those of other bundles and other root daemons: what one
/// session passes on must not reach another, nor come back. They are known by their process name,
/// which is the same in every PID namespace. Another process that takes the name is not steered
/// either, which harms only itself.
#[inline(always)]
pub(crate) fn is_exempt() -> bool {
    // SAFETY: no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let name = read::<u64>(task, setting!(offsets.task_group_leader))
        .and_then(|leader| read::<ProcessName>(leader, setting!(offsets.task_comm)));

    // As integers; a comparison of arrays would be a call of a function that this target lacks.
    name.is_ok_and(|name| u128::from_ne_bytes(name) == u128::from_ne_bytes(setting!(exempt)))
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
    let id = |offset| read::<u32>(cred, offset);
    let uid = setting!(uid);
    if id(setting!(offsets.cred_uid))? != uid {
        return Err(Counter::OtherUser);
    }
    let gid = id(setting!(offsets.cred_gid))?;
    // The saved ids too, which a program may take up again.
    let is_same = id(setting!(offsets.cred_euid))? == uid
        && id(setting!(offsets.cred_suid))? == uid
        && id(setting!(offsets.cred_fsuid))? == uid
        && id(setting!(offsets.cred_egid))? == gid
        && id(setting!(offsets.cred_sgid))? == gid
        && id(setting!(offsets.cred_fsgid))? == gid;
    if !is_same || has_gained_capabilities(cred)? {
        return Err(Counter::Privileged);
    }

    Ok(())
}

/// A capability is valid only in its user namespace. In a namespace of the user's own it allows a task
/// only what the user may do anyway.
#[inline(always)]
fn has_gained_capabilities(cred: u64) -> Result<bool, Counter> {
    let permitted = read::<u64>(cred, setting!(offsets.cred_cap_permitted))?;
    if permitted == 0 {
        return Ok(false);
    }
    let namespace = read::<u64>(cred, setting!(offsets.cred_user_ns))?;
    if read::<u32>(namespace, setting!(offsets.user_ns_inum))? == setting!(user_ns) {
        return Ok(permitted & !setting!(capabilities) != 0);
    }

    Ok(read::<u32>(namespace, setting!(offsets.user_ns_owner))? != setting!(uid))
}

#[inline(always)]
fn read<T>(base: u64, offset: u32) -> Result<T, Counter> {
    memory::read(base, offset).ok_or(Counter::Privileged)
}
