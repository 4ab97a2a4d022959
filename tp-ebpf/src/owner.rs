//! Whether sockets of the current task are steered.

use aya_ebpf::helpers::bpf_get_current_task;
use tp_ebpf_common::{Counter, ProcessName, SessionEntry, session_flags};

use crate::{maps::setting, memory};

/// A task of the kernel itself, for example an NFS mount's.
const PF_KTHREAD: u32 = 0x0020_0000;

/// True for sessions and root daemons, those of other root daemons too: what
/// one session passes on must not reach the other, nor come back. They are known by the name of
/// their process, which means the same in every PID namespace. Whoever else takes that name is
/// not steered either, which harms nobody but itself.
#[inline(always)]
pub(crate) fn is_exempt() -> bool {
    // SAFETY: no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let name = read::<u64>(task, setting!(offsets.task_group_leader))
        .and_then(|leader| read::<ProcessName>(leader, setting!(offsets.task_comm)));

    // Word by word; a comparison of arrays would be a call of a function that this target lacks.
    name.is_ok_and(|[first, second]| {
        let [exempt_first, exempt_second] = setting!(exempt);
        first == exempt_first && second == exempt_second
    })
}

/// The current task.
pub(crate) struct Task {
    task: u64,
    cred: u64,
    /// The real uid, as the initial user namespace numbers it.
    pub(crate) uid: u32,
}

impl Task {
    #[inline(always)]
    pub(crate) fn current() -> Option<Self> {
        // SAFETY: no preconditions.
        let task = unsafe { bpf_get_current_task() };
        let cred = memory::read::<u64>(task, setting!(offsets.task_cred))?;
        let uid = memory::read::<u32>(cred, setting!(offsets.cred_uid))?;

        Some(Self { task, cred, uid })
    }

    /// Succeeds when the session may steer the task's sockets.
    ///
    /// The real uid alone would let a set-user-id program take names and answers from the session
    /// of the user who started it.
    #[inline(always)]
    pub(crate) fn check(&self, session: &SessionEntry) -> Result<(), Counter> {
        if read::<u32>(self.task, setting!(offsets.task_flags))? & PF_KTHREAD != 0 {
            return Err(Counter::KernelThread);
        }
        if session.flags & session_flags::ONE_USER == 0 {
            return Ok(());
        }
        if self.uid != session.uid {
            return Err(Counter::OtherUser);
        }

        self.check_privileges(session)
    }

    #[inline(always)]
    fn check_privileges(&self, session: &SessionEntry) -> Result<(), Counter> {
        let id = |offset| read::<u32>(self.cred, offset);
        let uid = session.uid;
        let gid = id(setting!(offsets.cred_gid))?;
        // With the saved ones, which a program may take up again.
        let is_same = id(setting!(offsets.cred_euid))? == uid
            && id(setting!(offsets.cred_suid))? == uid
            && id(setting!(offsets.cred_fsuid))? == uid
            && id(setting!(offsets.cred_egid))? == gid
            && id(setting!(offsets.cred_sgid))? == gid
            && id(setting!(offsets.cred_fsgid))? == gid;
        if !is_same || self.has_gained_capabilities(session)? {
            return Err(Counter::Privileged);
        }

        Ok(())
    }

    /// A capability means something only together with the user namespace that it is for. What a
    /// task may do in a namespace of the user's own, that user may do anyway.
    #[inline(always)]
    fn has_gained_capabilities(&self, session: &SessionEntry) -> Result<bool, Counter> {
        let permitted = read::<u64>(self.cred, setting!(offsets.cred_cap_permitted))?;
        if permitted == 0 {
            return Ok(false);
        }
        let namespace = read::<u64>(self.cred, setting!(offsets.cred_user_ns))?;
        if read::<u32>(namespace, setting!(offsets.user_ns_inum))? == session.user_ns {
            return Ok(permitted & !session.capabilities != 0);
        }

        Ok(read::<u32>(namespace, setting!(offsets.user_ns_owner))? != session.uid)
    }
}

#[inline(always)]
fn read<T>(base: u64, offset: u32) -> Result<T, Counter> {
    memory::read(base, offset).ok_or(Counter::Privileged)
}
