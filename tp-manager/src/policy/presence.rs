//! The presence of policy and binding as they were installed, and their last change.

use jiff::Timestamp;
use k8s_openapi::{
    api::admissionregistration::v1::{
        MatchResources, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::{
    Resource,
    runtime::watcher::{self, Event},
};

/// An event of a watch on one object.
pub(super) enum ObjectEvent {
    Present(Version),
    /// The object is there, and this field exempts requests from it.
    Narrowed(&'static str),
    Absent,
    ListBegins,
    ListEnds,
}

impl ObjectEvent {
    pub(super) fn of<K: Resource>(
        event: Event<K>,
        narrowing: fn(&K) -> Option<&'static str>,
    ) -> Self {
        match event {
            Event::Apply(object) | Event::InitApply(object) => match narrowing(&object) {
                Some(field) => Self::Narrowed(field),
                None => Self::Present(Version::of(object.meta())),
            },
            Event::Delete(_) => Self::Absent,
            Event::Init => Self::ListBegins,
            Event::InitDone => Self::ListEnds,
        }
    }
}

/// Identifies a version of an object's specification.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) uid: Option<String>,
    /// Counts changes of the specification.
    pub(super) generation: Option<i64>,
    pub(super) since: Option<Timestamp>,
}

impl Version {
    fn of(metadata: &ObjectMeta) -> Self {
        Self {
            since: last_change(metadata),
            uid: metadata.uid.clone(),
            generation: metadata.generation,
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        self.generation.is_some() && (&self.uid, self.generation) == (&other.uid, other.generation)
    }
}

/// The presence of one object, and its last change.
#[derive(Debug, Default)]
pub(super) struct ObjectPresence {
    version: Option<Version>,
    narrowed: Option<&'static str>,
    in_list: bool,
}

impl ObjectPresence {
    pub(super) fn update(&mut self, seen: Result<ObjectEvent, watcher::Error>) {
        match seen {
            Ok(ObjectEvent::Present(version)) => {
                // Applying an unchanged object may change its time stamps only.
                if !self
                    .version
                    .as_ref()
                    .is_some_and(|known| known.is_same(&version))
                {
                    self.version = Some(version);
                }
                self.narrowed = None;
                self.in_list = true;
            }
            Ok(ObjectEvent::Narrowed(field)) => {
                self.version = None;
                self.narrowed = Some(field);
                self.in_list = true;
            }
            Ok(ObjectEvent::Absent) => *self = Self::default(),
            Ok(ObjectEvent::ListBegins) => self.in_list = false,
            Ok(ObjectEvent::ListEnds) if !self.in_list => *self = Self::default(),
            Ok(ObjectEvent::ListEnds) => {}
            Err(error) => tracing::debug!(%error, "Watch of the policy interrupted"),
        }
    }

    /// The last change; an error says what is wrong with the object.
    pub(super) fn since(&self) -> Result<Timestamp, String> {
        if let Some(field) = self.narrowed {
            return Err(format!(
                "does not cover every Session, because of its {field}: `tp install` puts it right"
            ));
        }
        let since = self.version.as_ref().and_then(|version| version.since);

        since.ok_or_else(|| "is missing".to_owned())
    }
}

/// The time of the object's last change, except of its status.
pub(super) fn last_change(metadata: &ObjectMeta) -> Option<Timestamp> {
    let created = metadata.creation_timestamp.as_ref()?.0;
    let changed = metadata
        .managed_fields
        .iter()
        .flatten()
        .filter(|entry| entry.subresource.as_deref().unwrap_or_default().is_empty())
        .filter_map(|entry| entry.time.as_ref())
        .map(|time| time.0)
        .max();

    Some(changed.map_or(created, |changed| changed.max(created)))
}

/// The field by which the policy exempts requests that a test in one namespace does not show.
pub(super) fn narrowing_of_policy(policy: &ValidatingAdmissionPolicy) -> Option<&'static str> {
    let spec = policy.spec.as_ref()?;
    let has_conditions = spec.match_conditions.iter().flatten().next().is_some();
    let constraints = spec.match_constraints.as_ref();

    has_conditions
        .then_some("spec.matchConditions")
        .or_else(|| constraints.and_then(narrowing_of))
}

/// [`narrowing_of_policy`] of its binding.
pub(super) fn narrowing_of_binding(
    binding: &ValidatingAdmissionPolicyBinding,
) -> Option<&'static str> {
    let resources = binding.spec.as_ref()?.match_resources.as_ref()?;
    let has_rules = resources.resource_rules.iter().flatten().next().is_some();

    has_rules
        .then_some("spec.matchResources.resourceRules")
        .or_else(|| narrowing_of(resources))
}

fn narrowing_of(resources: &MatchResources) -> Option<&'static str> {
    // The API server's default is an empty selector, which selects everything.
    let selects = |selector: &Option<LabelSelector>| {
        let selector = selector.as_ref();
        selector.is_some_and(|selector| *selector != LabelSelector::default())
    };
    let mut excluded = resources.exclude_resource_rules.iter().flatten();
    let mut rules = resources.resource_rules.iter().flatten();
    if selects(&resources.namespace_selector) {
        return Some("namespaceSelector");
    }
    if selects(&resources.object_selector) {
        return Some("objectSelector");
    }
    if excluded.next().is_some() {
        return Some("excludeResourceRules");
    }

    rules
        .any(|rule| rule.resource_names.iter().flatten().next().is_some())
        .then_some("resourceNames")
}
