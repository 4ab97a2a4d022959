//! The eBPF program of one pod: who connects to an intercepted port gets the agent's listener, unless
//! the container is to serve. Every pod has a set of its own of program and maps.

#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, bpf_sk_lookup},
    helpers::bpf_ktime_get_boot_ns,
    macros::{map, sk_lookup},
    maps::{Array, HashMap, PerCpuArray, SockMap},
    programs::SkLookupContext,
};
use tp_ebpf_common::{
    Address, LEASE_OVER_AFTER_NS, Lease, MAX_NODE_ADDRESSES, MAX_POD_PORTS, POD_LISTENER4,
    POD_LISTENER6, POD_LISTENERS, PodCounter, PodPort, PortState, mapped, pod_port_flags,
};

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;
/// Of the loopback interface, in every network namespace.
const LOOPBACK: u32 = 1;

/// The first byte of 127.0.0.0/8. From there, and from ::1, no packet comes in from outside; a process of
/// the pod may have bound such an address, and connect to the pod's other one.
const LOOPBACK_NETWORK: u8 = 127;

/// TCP ports of the pod, in the machine's byte order.
#[map]
static PORTS: HashMap<u32, PodPort> = HashMap::with_max_entries(MAX_POD_PORTS * 2, 0);

/// By the index in the entry of the port. The agent writes them.
#[map]
static LEASES: Array<Lease> = Array::with_max_entries(MAX_POD_PORTS, BPF_F_MMAPABLE);

/// Addresses from which the kubelet probes.
#[map]
static NODES: HashMap<Address, u32> = HashMap::with_max_entries(MAX_NODE_ADDRESSES, 0);

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
    count(port.lease, outcome);
    match outcome {
        PodCounter::Workstation => {
            // SAFETY: the kernel passes a live context.
            let family = unsafe { (*ctx.lookup).family };
            let listener = if family == AF_INET {
                POD_LISTENER4
            } else {
                POD_LISTENER6
            };
            // Without a listener of that family the container is reached.
            let _ = LISTENERS.redirect_sk_lookup(&ctx, listener, 0);
            SK_PASS
        }
        // The kernel answers as it does for a port without a socket.
        PodCounter::Refused => SK_DROP,
        PodCounter::LeaseOver
        | PodCounter::ClosedToContainer
        | PodCounter::Exempt
        | PodCounter::Probe => SK_PASS,
    }
}

/// `None` for what is not about an intercepted port.
#[inline(always)]
fn decide(ctx: &SkLookupContext) -> Option<(PodPort, PodCounter)> {
    let lookup = ctx.lookup;
    // SAFETY: the kernel passes a live context.
    let (protocol, local_port, interface) = unsafe {
        (
            (*lookup).protocol,
            (*lookup).local_port,
            (*lookup).ingress_ifindex,
        )
    };
    if protocol != IPPROTO_TCP {
        return None;
    }
    // SAFETY: a copy; whoever changes the entry replaces it.
    let port = unsafe { PORTS.get(&local_port) }.copied()?;
    let remote = addresses(lookup)?;
    let outcome = match remote {
        _ if interface == LOOPBACK => PodCounter::Exempt,
        Remote::Own => PodCounter::Exempt,
        Remote::Other(address) => {
            let is_probed = port.flags & pod_port_flags::PROBED != 0;
            if is_probed && NODES.get_ptr(&address).is_some() {
                PodCounter::Probe
            } else {
                of_lease(port.lease)
            }
        }
    };

    Some((port, outcome))
}

enum Remote {
    /// The pod itself.
    Own,
    Other(Address),
}

/// Addresses of other families than IP are nobody's.
#[inline(always)]
fn addresses(lookup: *mut bpf_sk_lookup) -> Option<Remote> {
    // SAFETY: the kernel passes a live context; its fields are read by words.
    unsafe {
        match (*lookup).family {
            AF_INET => {
                let remote = (*lookup).remote_ip4;
                let bytes = remote.to_ne_bytes();
                if remote == (*lookup).local_ip4 || bytes[0] == LOOPBACK_NETWORK {
                    return Some(Remote::Own);
                }
                Some(Remote::Other(mapped(bytes)))
            }
            AF_INET6 => {
                let remote = [
                    (*lookup).remote_ip6[0],
                    (*lookup).remote_ip6[1],
                    (*lookup).remote_ip6[2],
                    (*lookup).remote_ip6[3],
                ];
                let local = [
                    (*lookup).local_ip6[0],
                    (*lookup).local_ip6[1],
                    (*lookup).local_ip6[2],
                    (*lookup).local_ip6[3],
                ];
                let difference = (remote[0] ^ local[0])
                    | (remote[1] ^ local[1])
                    | (remote[2] ^ local[2])
                    | (remote[3] ^ local[3]);
                let before_last = remote[0] | remote[1] | remote[2];
                if difference == 0 || (before_last == 0 && remote[3] == 1_u32.to_be()) {
                    return Some(Remote::Own);
                }
                Some(Remote::Other(core::mem::transmute::<[u32; 4], Address>(
                    remote,
                )))
            }
            _ => None,
        }
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
