//! The WORKLOAD of a command.

use std::{fmt, str::FromStr};

/// `name` or `kind/name`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadName {
    /// `None`: whatever has this name.
    pub kind: Option<WorkloadKind>,
    /// The name of the object.
    pub name: String,
}

/// Kinds whose pods can be intercepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkloadKind {
    /// apps
    Deployment,
    /// apps
    StatefulSet,
    /// apps
    DaemonSet,
    /// apps
    ReplicaSet,
    /// batch
    Job,
    /// A pod without an owner.
    Pod,
    /// The workload whose pods it selects.
    Service,
}

/// A WORKLOAD that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// `cronjob/nightly`
    #[error("{kind:?} of {text:?} is no kind that tp intercepts: use {}", kinds())]
    Kind {
        /// The whole argument.
        text: String,
        /// The part before the slash.
        kind: String,
    },
    /// The name is none of Kubernetes.
    #[error(
        "{text:?} is no workload: give NAME or KIND/NAME, where the name has lower-case letters, \
         digits, hyphens and dots"
    )]
    Name {
        /// The whole argument.
        text: String,
    },
}

/// Each kind with its names for kubectl (`kubectl api-resources`): short, singular, plural; and the
/// group, which may stand behind singular and plural.
const KINDS: [(WorkloadKind, &[&str], &str); 7] = [
    (
        WorkloadKind::Deployment,
        &["deploy", "deployment", "deployments"],
        "apps",
    ),
    (
        WorkloadKind::StatefulSet,
        &["sts", "statefulset", "statefulsets"],
        "apps",
    ),
    (
        WorkloadKind::DaemonSet,
        &["ds", "daemonset", "daemonsets"],
        "apps",
    ),
    (
        WorkloadKind::ReplicaSet,
        &["rs", "replicaset", "replicasets"],
        "apps",
    ),
    (WorkloadKind::Job, &["job", "job", "jobs"], "batch"),
    (WorkloadKind::Pod, &["po", "pod", "pods"], ""),
    (WorkloadKind::Service, &["svc", "service", "services"], ""),
];

fn kinds() -> String {
    super::listed(WorkloadKind::all())
}

impl WorkloadKind {
    /// All kinds, in the order in which they are looked up.
    pub fn all() -> impl Iterator<Item = Self> {
        KINDS.into_iter().map(|(kind, ..)| kind)
    }

    /// Reads a kind as kubectl does: without regard to case, with the group behind a dot if wanted,
    /// and a version before the group (`deployments.v1.apps`).
    fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let (word, group) = match text.split_once('.') {
            Some((word, group)) => (word, Some(group)),
            None => (text.as_str(), None),
        };
        KINDS
            .into_iter()
            .find(|(_, words, of)| {
                let is_group = |group: &str| group == *of || group.strip_prefix("v1.") == Some(of);
                words.contains(&word) && group.is_none_or(|it| !of.is_empty() && is_group(it))
            })
            .map(|(kind, ..)| kind)
    }
}

impl FromStr for WorkloadName {
    type Err = WorkloadError;

    fn from_str(text: &str) -> Result<Self, WorkloadError> {
        let (kind, name) = match text.split_once('/') {
            None => (None, text),
            Some((word, name)) => {
                let kind = WorkloadKind::parse(word).ok_or_else(|| WorkloadError::Kind {
                    text: text.to_owned(),
                    kind: word.to_owned(),
                })?;
                (Some(kind), name)
            }
        };
        // Names of objects are subdomains of RFC 1123 (`IsDNS1123Subdomain`).
        let is_part = |part: &str| {
            let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            let is_inside = |c: char| is_end(c) || c == '-';
            part.starts_with(is_end) && part.ends_with(is_end) && part.chars().all(is_inside)
        };
        if name.len() > 253 || !name.split('.').all(is_part) {
            return Err(WorkloadError::Name {
                text: text.to_owned(),
            });
        }

        Ok(Self {
            kind,
            name: name.to_owned(),
        })
    }
}

/// The word that is unambiguous before a slash.
impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deployment => "deployment",
            Self::StatefulSet => "statefulset",
            Self::DaemonSet => "daemonset",
            Self::ReplicaSet => "replicaset",
            Self::Job => "job",
            Self::Pod => "pod",
            Self::Service => "service",
        })
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(kind) = self.kind {
            write!(f, "{kind}/")?;
        }

        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> String {
        text.parse::<WorkloadName>().unwrap().to_string()
    }

    fn refused(text: &str) -> String {
        text.parse::<WorkloadName>().unwrap_err().to_string()
    }

    #[test]
    fn kinds_have_the_names_that_kubectl_knows() {
        for (texts, expected) in [
            (&["web"][..], "web"),
            (
                &["deploy/web", "deployment/web", "Deployments/web"],
                "deployment/web",
            ),
            (
                &["deployment.apps/web", "deployments.v1.apps/web"],
                "deployment/web",
            ),
            (
                &["sts/web", "statefulset/web", "statefulsets.apps/web"],
                "statefulset/web",
            ),
            (&["ds/web", "daemonset/web"], "daemonset/web"),
            (&["rs/web", "replicaset/web"], "replicaset/web"),
            (&["job/web", "jobs/web", "job.batch/web"], "job/web"),
            (&["po/web", "pod/web", "pods/web"], "pod/web"),
            (&["svc/web", "service/web", "services/web"], "service/web"),
        ] {
            for text in texts {
                assert_eq!(parsed(text), expected, "{text}");
            }
        }
    }

    #[test]
    fn every_kind_is_read_as_it_is_shown() {
        for kind in WorkloadKind::all() {
            assert_eq!(parsed(&format!("{kind}/a.b-c1")), format!("{kind}/a.b-c1"));
        }
    }

    #[test]
    fn what_is_no_workload_is_answered_with_what_to_do() {
        assert_eq!(
            refused("cronjob/nightly"),
            "\"cronjob\" of \"cronjob/nightly\" is no kind that tp intercepts: use deployment, \
             statefulset, daemonset, replicaset, job, pod or service"
        );
        assert_eq!(
            refused("deploy/Web"),
            "\"deploy/Web\" is no workload: give NAME or KIND/NAME, where the name has lower-case \
             letters, digits, hyphens and dots"
        );
        for text in [
            "",
            "deploy/",
            "web_1",
            "-web",
            "a..b",
            "deploy/web/1",
            "web ",
            "--port",
        ] {
            assert!(refused(text).contains("is no workload"), "{text}");
        }
        for text in ["/web", "pod.apps/web", "deploy.batch/web", "pod./web"] {
            assert!(refused(text).contains("is no kind"), "{text}");
        }
        assert!(refused(&"a".repeat(254)).contains("is no workload"));
    }
}
