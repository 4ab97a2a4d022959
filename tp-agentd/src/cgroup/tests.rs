use super::*;

const UID: &str = "3f1c0f0e-8f3a-4f6e-9a51-0c7a1d2e3f40";
const HASH: &str = "3b0a0c6ed1d3b9ac8e7a3ac4d4fbc3d1";
const ID: &str = "8d5a1e0c7b6f4d3e2c1b0a9f8e7d6c5b4a39281706f5e4d3c2b1a09f8e7d6c5b";
const OTHER: &str = "1111111111111111111111111111111111111111111111111111111111111111";

/// Paths as nodes have them: our own, and one of a container; `U` stands for the UID, `_` form for the
/// slices, `I` for the id.
const NODES: [(&str, &str, &str); 14] = [
    (
        "systemd, v2, containerd",
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podA.slice/cri-containerd-B.scope",
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU.slice/cri-containerd-I.scope",
    ),
    (
        "systemd, v2, containerd, guaranteed",
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podA.slice/cri-containerd-B.scope",
        "/kubepods.slice/kubepods-podU.slice/cri-containerd-I.scope",
    ),
    (
        "systemd, v2, directories of the container's own",
        "/kubepods.slice/kubepods-podA.slice/cri-containerd-B.scope",
        "/kubepods.slice/kubepods-podU.slice/cri-containerd-I.scope/init.scope",
    ),
    (
        "systemd, CRI-O",
        "/kubepods.slice/kubepods-podA.slice/crio-B.scope",
        "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU.slice/crio-I.scope",
    ),
    (
        "systemd, CRI-O with crun",
        "/kubepods.slice/kubepods-podA.slice/crio-B.scope/container",
        "/kubepods.slice/kubepods-podU.slice/crio-I.scope/container",
    ),
    (
        "systemd, docker",
        "/kubepods.slice/kubepods-podA.slice/docker-B.scope",
        "/kubepods.slice/kubepods-podU.slice/docker-I.scope",
    ),
    (
        "cgroupfs, containerd",
        "/kubepods/besteffort/podA/B",
        "/kubepods/burstable/podU/I",
    ),
    (
        "cgroupfs, guaranteed",
        "/kubepods/besteffort/podA/B",
        "/kubepods/podU/I",
    ),
    (
        "cgroupfs, CRI-O",
        "/kubepods/podA/crio-B",
        "/kubepods/besteffort/podU/crio-I",
    ),
    (
        "a cgroup root of the kubelet",
        "/kube/kubepods/podA/B",
        "/kube/kubepods/burstable/podU/I",
    ),
    (
        "kind, systemd",
        "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podA.slice/cri-containerd-B.scope",
        "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-podU.slice/cri-containerd-I.scope",
    ),
    (
        "kind, cgroupfs, v1",
        "/docker/0123/kubelet/kubepods/besteffort/podA/B",
        "/docker/0123/kubelet/kubepods/burstable/podU/I",
    ),
    (
        "kind in a pod",
        "/kubepods/podX/Y/docker/Z/kubelet/kubepods/podA/B",
        "/kubepods/podX/Y/docker/Z/kubelet/kubepods/podU/I",
    ),
    (
        "two drivers",
        "/system.slice/containerd.service/kubepods-podA.slice:cri-containerd:B",
        "/system.slice/containerd.service/kubepods-burstable-podU.slice:cri-containerd:I",
    ),
];

fn uid(text: &str) -> PodUid {
    PodUid::parse(text).unwrap()
}

fn filled(path: &str, uid: &str, id: &str) -> String {
    let uid = if path.contains(".slice") {
        uid.replace('-', "_")
    } else {
        uid.to_owned()
    };

    path.replace("podU", &format!("pod{uid}"))
        .replace("-I", &format!("-{id}"))
        .replace("/I", &format!("/{id}"))
        .replace(":I", &format!(":{id}"))
}

#[test]
fn a_container_is_found_on_every_kind_of_node() {
    for (node, own, path) in NODES {
        let pods = PodCgroups::above(own).unwrap_or_else(|| panic!("{node}: no pods"));
        for of in [UID, HASH] {
            let path = filled(path, of, ID);
            let found = pods.container_of(&path, &uid(of));
            assert_eq!(found, ContainerId::parse(ID), "{node}: {path}");
            let strange = uid("00000000-8f3a-4f6e-9a51-0c7a1d2e3f40");
            assert_eq!(pods.container_of(&path, &strange), None, "{node}: {path}");
        }
    }
}

#[test]
fn a_path_that_only_looks_like_the_pod_is_not_taken_for_it() {
    let pods = PodCgroups::above("/kubepods.slice/kubepods-podA.slice/cri-containerd-B.scope");
    let pods = pods.unwrap();
    let good = "/kubepods.slice/kubepods-podU.slice/cri-containerd-I.scope";
    let pod = "/kubepods.slice/kubepods-podU.slice";
    for path in [
        // Made by a container that may make cgroups.
        format!("/kubepods.slice/kubepods-podother.slice/cri-containerd-{OTHER}.scope{good}"),
        format!("/user.slice{good}"),
        format!("/..{good}"),
        format!("{good} (deleted)"),
        good.replace("podU", "podU0"),
        good.replace("kubepods.slice", "xkubepods.slice"),
        good.replace("-podU", "-burstable-podU"),
        format!("{pod}/crio-conmon-I.scope"),
        format!("{pod}/cri-containerd-I0.scope"),
        format!("{pod}/evil-I.scope"),
        format!("{pod}/x/cri-containerd-I.scope"),
        pod.to_owned(),
        "/".to_owned(),
        String::new(),
    ] {
        let path = filled(&path, UID, ID);
        assert_eq!(pods.container_of(&path, &uid(UID)), None, "{path}");
    }
    let good = filled(good, UID, ID);
    assert!(pods.container_of(&good, &uid(UID)).is_some());
}

#[test]
fn a_process_of_no_pod_does_not_show_where_the_pods_are() {
    for path in [
        "/",
        "/user.slice/user-0.slice",
        "/system.slice/kubelet.service",
        "/notkubepods.slice/a",
        "kubepods/a",
    ] {
        assert_eq!(PodCgroups::above(path), None, "{path}");
    }
}

#[test]
fn a_file_has_one_path_that_counts() {
    let v2 = "0::/kubepods/podU/I\n";
    let v1 = "12:pids:/a\n11:memory:/b\n2:cpu,cpuacct:/c\n1:name=systemd:/d\n";
    let hybrid = "5:memory:/b\n1:name=systemd:/d\n0::/system.slice/containerd.service\n";
    let two_drivers = "0::/system.slice/kubepods-podU.slice:cri-containerd:I\n";

    assert_eq!(path_in(v2), Some("/kubepods/podU/I"));
    assert_eq!(path_in(v1), Some("/b"));
    assert_eq!(path_in("2:cpu,cpuacct:/c\n1:name=systemd:/d\n"), Some("/c"));
    assert_eq!(path_in(hybrid), Some("/b"));
    assert_eq!(
        path_in(two_drivers),
        Some("/system.slice/kubepods-podU.slice:cri-containerd:I")
    );
    assert_eq!(path_in(""), None);
}

#[test]
fn only_uids_and_ids_are_taken_for_such() {
    for text in [
        "",
        "x",
        "../../1",
        &UID.to_uppercase(),
        &UID[1..],
        &HASH[1..],
    ] {
        assert_eq!(PodUid::parse(text), None, "{text}");
    }
    for text in ["", &ID[1..], &ID.to_uppercase(), "containerd://x"] {
        assert_eq!(ContainerId::parse(text), None, "{text}");
    }
}
