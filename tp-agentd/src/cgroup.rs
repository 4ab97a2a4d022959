//! Which container of which pod a process belongs to: the path of its cgroup, matched whole from the
//! directory of the kubelet's pods. Pure: text in, decision out.

/// The directory of the kubelet's pods, and how it names what is below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodCgroups {
    dir: String,
    style: Style,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Style {
    /// The driver `cgroupfs`: `kubepods/burstable/pod<uid>/<id>`.
    Plain,
    /// The driver `systemd`: slices, whose names repeat those above. This is the name of the topmost.
    Slices(String),
    /// The runtime's driver is `cgroupfs`, the kubelet's `systemd`: one directory per container,
    /// `kubepods-burstable-pod<uid>.slice:cri-containerd:<id>`.
    Colons(String),
}

/// The UID of a pod as the API server has it, or, of a static pod, a hash without dashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodUid(String);

/// Without the name of the runtime.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ContainerId(String);

const PODS: &str = "kubepods";
/// The classes of quality of service with a directory of their own; "guaranteed" has none.
const CLASSES: [&str; 2] = ["burstable", "besteffort"];
const RUNTIMES: [&str; 3] = ["cri-containerd", "crio", "docker"];
const SLICE: &str = ".slice";

impl PodUid {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let lengths: Vec<usize> = text.split('-').map(str::len).collect();
        let is_uid = matches!(lengths[..], [8, 4, 4, 4, 12] | [32])
            && text.split('-').all(is_lower_hexadecimal);

        is_uid.then(|| Self(text.to_owned()))
    }

    /// In the name of a slice a dash leads one level down.
    fn in_slice(&self) -> String {
        self.0.replace('-', "_")
    }
}

impl ContainerId {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        (text.len() == 64 && is_lower_hexadecimal(text)).then(|| Self(text.to_owned()))
    }

    /// The name of a container's directory: `<id>`, `crio-<id>`, `cri-containerd-<id>.scope`.
    fn of_directory(name: &str) -> Option<Self> {
        let name = name.strip_suffix(".scope").unwrap_or(name);
        match name.rsplit_once('-') {
            Some((runtime, id)) if RUNTIMES.contains(&runtime) => Self::parse(id),
            Some(_) => None,
            None => Self::parse(name),
        }
    }
}

impl PodCgroups {
    /// Finds the directory in the path of a pod's process, for example our own. The last name counts: the
    /// node may itself be a container of a pod.
    pub(crate) fn above(path: &str) -> Option<Self> {
        let names: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        let found = names
            .iter()
            .enumerate()
            .rev()
            .find_map(|(at, name)| Some((at, style_of(name)?)));
        let (at, style) = found?;
        let end = match style {
            Style::Plain | Style::Slices(_) => at + 1,
            Style::Colons(_) => at,
        };
        let dir = names[..end].iter().map(|name| format!("/{name}")).collect();

        Some(Self { dir, style })
    }

    /// The container of this pod whose process has the cgroup `path`.
    pub(crate) fn container_of(&self, path: &str, uid: &PodUid) -> Option<ContainerId> {
        let below = path.strip_prefix(self.dir.as_str())?.strip_prefix('/')?;
        let mut names = below.split('/');
        let first = names.next()?;
        let class = CLASSES
            .into_iter()
            .find(|class| self.is_class(first, class));
        let pod = if class.is_some() {
            names.next()?
        } else {
            first
        };
        let rest = match &self.style {
            Style::Plain => pod.strip_prefix("pod")?.strip_prefix(uid.0.as_str())?,
            Style::Slices(top) => pod
                .strip_prefix(&pod_slice(top, class, uid))?
                .strip_prefix(SLICE)?,
            Style::Colons(top) => {
                let container = [None, Some(CLASSES[0]), Some(CLASSES[1])]
                    .into_iter()
                    .find_map(|class| pod.strip_prefix(&pod_slice(top, class, uid)))?;
                let (_, id) = container
                    .strip_prefix(SLICE)?
                    .strip_prefix(':')?
                    .split_once(':')
                    .filter(|(runtime, _)| RUNTIMES.contains(runtime))?;
                return ContainerId::parse(id);
            }
        };
        if !rest.is_empty() {
            return None;
        }

        // Below the container are directories of its own.
        ContainerId::of_directory(names.next()?)
    }

    fn is_class(&self, name: &str, class: &str) -> bool {
        match &self.style {
            Style::Plain => name == class,
            Style::Slices(top) => name == format!("{top}-{class}{SLICE}"),
            Style::Colons(_) => false,
        }
    }
}

/// Without ".slice".
fn pod_slice(top: &str, class: Option<&str>, uid: &PodUid) -> String {
    let uid = uid.in_slice();

    class.map_or_else(
        || format!("{top}-pod{uid}"),
        |class| format!("{top}-{class}-pod{uid}"),
    )
}

fn style_of(name: &str) -> Option<Style> {
    if name == PODS {
        return Some(Style::Plain);
    }
    if let Some((slice, _)) = name.split_once(':') {
        let (top, _) = slice.strip_suffix(SLICE)?.rsplit_once("-pod")?;
        let top = CLASSES
            .iter()
            .find_map(|class| top.strip_suffix(class)?.strip_suffix('-'))
            .unwrap_or(top);
        return is_top(top).then(|| Style::Colons(top.to_owned()));
    }
    let top = name.strip_suffix(SLICE)?;

    is_top(top).then(|| Style::Slices(top.to_owned()))
}

/// `kubepods`, or with the name of the slice above: `kubelet-kubepods`.
fn is_top(name: &str) -> bool {
    name.strip_suffix(PODS)
        .is_some_and(|above| above.is_empty() || above.ends_with('-'))
}

/// The path that counts in a `/proc/PID/cgroup`: of cgroup v2, unless v1 has a hierarchy that the kubelet
/// uses, as it has beside v2 on hybrid hosts.
pub(crate) fn path_in(file: &str) -> Option<&str> {
    let lines: Vec<(&str, &str)> = file
        .lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            rest.split_once(':')
        })
        .collect();
    let of = |wanted: &str| {
        lines
            .iter()
            .find(|(controllers, _)| controllers.split(',').any(|it| it == wanted))
            .map(|(_, path)| *path)
    };

    ["memory", "cpu", "pids", "name=systemd", ""]
        .into_iter()
        .find_map(of)
}

fn is_lower_hexadecimal(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
#[path = "cgroup/tests.rs"]
mod tests;
