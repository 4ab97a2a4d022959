//! The eBPF program of one pod: who connects to an intercepted port gets the agent's listener, unless
//! the container is to serve. Every pod has a set of its own of program and maps.

#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_SK_LOOKUP_F_REPLACE, bpf_sk_lookup},
    helpers::bpf_ktime_get_boot_ns,
    macros::{map, sk_lookup},
    maps::{Array, HashMap, PerCpuArray, SockMap},
    programs::SkLookupContext,
};
use tp_ebpf_common::{
    Address, LEASE_OVER_AFTER_NS, Lease, MAX_NODE_ADDRESSES, MAX_OWN_ADDRESSES, MAX_POD_PORTS,
    POD_LISTENER4, POD_LISTENER6, POD_LISTENERS, PodCounter, PodPort, PortState, pod_port_flags,
};

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;
/// The first byte of 127.0.0.0/8. From there, and from ::1, no packet comes in from outside; a process of
/// the pod may have bound such an address, and connect to the pod's other one.
const LOOPBACK_NETWORK: u8 = 127;
/// The third word of an address of IPv4 in the form of IPv6.
const V4_MAPPED: u32 = 0xFFFF;

/// TCP ports of the pod, in the machine's byte order.
#[map]
static PORTS: HashMap<u32, PodPort> = HashMap::with_max_entries(MAX_POD_PORTS * 2, 0);

/// By the index in the entry of the port. The agent writes them.
#[map]
static LEASES: Array<Lease> = Array::with_max_entries(MAX_POD_PORTS, BPF_F_MMAPABLE);

/// Addresses from which the kubelet probes.
#[map]
static NODES: HashMap<Address, u32> = HashMap::with_max_entries(MAX_NODE_ADDRESSES, 0);

/// Addresses of the pod.
#[map]
static OWN: HashMap<Address, u32> = HashMap::with_max_entries(MAX_OWN_ADDRESSES, 0);

#[map]
static LISTENERS: SockMap = SockMap::with_max_entries(POD_LISTENERS, 0);

#[map]
static COUNTERS: PerCpuArray<u64> =
    PerCpuArray::with_max_entries(MAX_POD_PORTS * PodCounter::COUNT, 0);

#[sk_lookup]
pub fn tp_redirect(ctx: SkLookupContext) -> u32 {
    let Some((port, outcome)) = decide(&ctx) else {
        return SK_PASS;
    };
    let (verdict, outcome) = match outcome {
        PodCounter::Workstation => (SK_PASS, assign(&ctx)),
        PodCounter::Refused if is_chosen(&ctx) => (SK_DROP, PodCounter::Elsewhere),
        // The kernel answers as it does for a port without a socket.
        PodCounter::Refused => (SK_DROP, outcome),
        PodCounter::LeaseOver
        | PodCounter::ClosedToContainer
        | PodCounter::Exempt
        | PodCounter::Probe
        | PodCounter::Elsewhere => (SK_PASS, outcome),
    };
    count(port.lease, outcome);

    verdict
}

/// Leads to the listener. All programs of a namespace run, the oldest first: what one before has chosen
/// is replaced, so that of two agents the newer one gets what it has a lease for.
#[inline(always)]
fn assign(ctx: &SkLookupContext) -> PodCounter {
    // SAFETY: the kernel passes a live context.
    let family = unsafe { (*ctx.lookup).family };
    let listener = if family == AF_INET {
        POD_LISTENER4
    } else {
        POD_LISTENER6
    };
    match LISTENERS.redirect_sk_lookup(ctx, listener, u64::from(BPF_SK_LOOKUP_F_REPLACE)) {
        Ok(()) => PodCounter::Workstation,
        Err(_) => PodCounter::Elsewhere,
    }
}

/// Returns whether a program before this one has chosen a socket: that stands, whatever is dropped here.
#[inline(always)]
fn is_chosen(ctx: &SkLookupContext) -> bool {
    // SAFETY: the kernel passes a live context; the pointer is only compared.
    !unsafe { (*ctx.lookup).__bindgen_anon_1.__bindgen_anon_1.sk }.is_null()
}

/// `None` for what is not about an intercepted port.
#[inline(always)]
fn decide(ctx: &SkLookupContext) -> Option<(PodPort, PodCounter)> {
    let lookup = ctx.lookup;
    // SAFETY: the kernel passes a live context.
    let (protocol, local_port) = unsafe { ((*lookup).protocol, (*lookup).local_port) };
    if protocol != IPPROTO_TCP {
        return None;
    }
    // SAFETY: a copy; whoever changes the entry replaces it.
    let port = unsafe { PORTS.get(&local_port) }.copied()?;
    let (local, remote) = addresses(lookup)?;
    let is_probed = port.flags & pod_port_flags::PROBED != 0;
    let outcome = if is_own(local, remote) {
        PodCounter::Exempt
    } else if is_probed && NODES.get_ptr(&in_bytes(remote)).is_some() {
        PodCounter::Probe
    } else {
        of_lease(port.lease)
    };

    Some((port, outcome))
}

/// In network byte order, of IPv4 as `::ffff:a.b.c.d`.
type Words = [u32; 4];

/// Returns whether the pod itself connects. The interface would say so too, but is told since Linux 5.17
/// only.
#[inline(always)]
fn is_own(local: Words, remote: Words) -> bool {
    let difference = (remote[0] ^ local[0])
        | (remote[1] ^ local[1])
        | (remote[2] ^ local[2])
        | (remote[3] ^ local[3]);

    difference == 0
        || is_loopback(local)
        || is_loopback(remote)
        || OWN.get_ptr(&in_bytes(remote)).is_some()
}

#[inline(always)]
fn is_loopback(words: Words) -> bool {
    if words[0] | words[1] != 0 {
        return false;
    }
    let is_v4 = words[2] == V4_MAPPED.to_be();

    (is_v4 && words[3].to_ne_bytes()[0] == LOOPBACK_NETWORK)
        || (words[2] == 0 && words[3] == 1_u32.to_be())
}

#[inline(always)]
fn in_bytes(words: Words) -> Address {
    // SAFETY: both are sixteen bytes, of any value.
    unsafe { core::mem::transmute::<Words, Address>(words) }
}

/// The local and the remote one. Addresses of other families than IP are nobody's.
#[inline(always)]
fn addresses(lookup: *mut bpf_sk_lookup) -> Option<(Words, Words)> {
    // SAFETY: the kernel passes a live context.
    let family = unsafe { (*lookup).family };
    // SAFETY: as above; those of the other family are zero. They are read by words, all of them, in any
    // case: the verifier takes no address within the context that a branch has chosen.
    let (local4, remote4, local6, remote6) = unsafe {
        (
            (&raw const (*lookup).local_ip4).read_volatile(),
            (&raw const (*lookup).remote_ip4).read_volatile(),
            words(&raw const (*lookup).local_ip6),
            words(&raw const (*lookup).remote_ip6),
        )
    };
    let of_v4 = |address| [0, 0, V4_MAPPED.to_be(), address];
    match family {
        AF_INET => Some((of_v4(local4), of_v4(remote4))),
        AF_INET6 => Some((local6, remote6)),
        _ => None,
    }
}

/// # Safety
///
/// `address` is one of a live context.
#[inline(always)]
unsafe fn words(address: *const Words) -> Words {
    let word = address.cast::<u32>();

    // SAFETY: it has four words.
    unsafe {
        [
            word.read_volatile(),
            word.add(1).read_volatile(),
            word.add(2).read_volatile(),
            word.add(3).read_volatile(),
        ]
    }
}

#[inline(always)]
fn of_lease(index: u32) -> PodCounter {
    let Some(lease) = LEASES.get_ptr(index) else {
        return PodCounter::LeaseOver;
    };
    // SAFETY: an element of the map, which the agent may change between the two reads: either order
    // is one in which the agent may have written.
    let (renewed, state) = unsafe {
        (
            (&raw const (*lease).renewed).read_volatile(),
            (&raw const (*lease).state).read_volatile(),
        )
    };
    // SAFETY: has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // The agent may have read the clock after us, on another processor.
    if now.abs_diff(renewed) > LEASE_OVER_AFTER_NS {
        return PodCounter::LeaseOver;
    }
    if state == PortState::Open as u32 {
        PodCounter::Workstation
    } else if state == PortState::Refuse as u32 {
        PodCounter::Refused
    } else {
        PodCounter::ClosedToContainer
    }
}

#[inline(always)]
fn count(lease: u32, counter: PodCounter) {
    if let Some(value) = COUNTERS.get_ptr_mut(lease * PodCounter::COUNT + counter as u32) {
        // SAFETY: this CPU's element; a lost count is acceptable.
        unsafe { *value = (*value).wrapping_add(1) };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// As that of the workstation's programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
