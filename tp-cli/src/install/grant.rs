//! `tp grant`: the bindings that let a user or group connect.

use clap::{Args, builder::NonEmptyStringValueParser};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::DynamicObject};
use serde_json::json;
use tp_proto::fault::{Fault, FaultKind};

use super::{apply, cluster::Cluster, manifests, object::Object, print};
use crate::{
    cluster_args::{ClusterArgs, ManagerArgs},
    output::Output,
    values,
};

const RBAC: &str = "rbac.authorization.k8s.io";
/// The ClusterRole that allows connecting to a namespace.
pub(crate) const USER_ROLE: &str = "tp-user";
/// The ClusterRole that allows intercepts in a namespace.
pub(crate) const INTERCEPT_ROLE: &str = "tp-intercept";
/// The Role that allows port-forwards to the traffic manager.
pub(crate) const CONNECT_ROLE: &str = "tp-connect";

/// Let a user or a group connect, and reach what is in these namespaces
///
/// Makes a RoleBinding to the ClusterRole tp-user in each namespace, and one to the Role tp-connect
/// in the namespace of the traffic manager, which lets them forward a port to it. With --dry-run the
/// objects are printed instead. `kubectl delete rolebinding` takes a right back.
#[derive(Debug, Clone, Args)]
pub(crate) struct GrantArgs {
    /// Who may connect, by the name that the API server knows them by (`kubectl auth whoami`)
    #[arg(value_name = "USER", required_unless_present = "group", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) person: Option<String>,

    /// A group whose members may connect (repeatable)
    #[arg(long, value_name = "GROUP", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) group: Vec<String>,

    /// Where they may connect to (repeatable)
    #[arg(
        long,
        short,
        value_name = "NAMESPACE",
        value_parser = values::namespace,
        required = true,
        help_heading = "Kubernetes"
    )]
    pub(crate) namespace: Vec<String>,

    #[command(flatten)]
    pub(crate) manager: ManagerArgs,

    /// Let them intercept there as well, by the ClusterRole tp-intercept
    #[arg(long)]
    pub(crate) intercept: bool,

    /// Print the objects instead of applying them: as YAML, or with --output json as one List
    #[arg(long)]
    pub(crate) dry_run: bool,

    // Last: its heading is that of whatever follows.
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

/// The subject of a binding.
#[derive(Clone, Copy)]
struct Subject<'a> {
    kind: &'static str,
    name: &'a str,
}

impl GrantArgs {
    fn subjects(&self) -> impl Iterator<Item = Subject<'_>> {
        let users = self
            .person
            .iter()
            .map(|name| Subject { kind: "User", name });
        users.chain(self.group.iter().map(|name| Subject {
            kind: "Group",
            name,
        }))
    }

    /// The namespaces first: if one fails, nobody may forward a port yet.
    fn objects(&self) -> Vec<Object> {
        let manager = &self.manager.manager_namespace;
        let uses = self.subjects().flat_map(|subject| {
            let namespaces = self.namespace.iter();
            namespaces
                .map(move |namespace| subject.binding(namespace, "use", "ClusterRole", USER_ROLE))
        });
        let intercepts = self.subjects().flat_map(|subject| {
            let namespaces = self.namespace.iter().filter(|_| self.intercept);
            namespaces.map(move |namespace| {
                subject.binding(namespace, "intercept", "ClusterRole", INTERCEPT_ROLE)
            })
        });
        let connects = self
            .subjects()
            .map(|subject| subject.binding(manager, "connect", "Role", CONNECT_ROLE));

        uses.chain(intercepts).chain(connects).collect()
    }
}

impl Subject<'_> {
    /// One binding for each subject, so that a right is revoked by its name.
    fn binding(&self, namespace: &str, purpose: &str, role_kind: &str, role: &str) -> Object {
        // Names of RBAC objects may hold everything that a path segment may hold.
        let name = self.name.replace(['/', '%'], "_");
        let kind = self.kind.to_lowercase();

        let mut value = json!({
            "apiVersion": format!("{RBAC}/v1"),
            "kind": "RoleBinding",
            "metadata": {"name": format!("tp-{purpose}-{kind}-{name}"), "namespace": namespace},
            "roleRef": {"apiGroup": RBAC, "kind": role_kind, "name": role},
            "subjects": [{"apiGroup": RBAC, "kind": self.kind, "name": self.name}],
        });
        // `tp uninstall --everything` finds them by these.
        manifests::add_labels(&mut value);

        Object { value }
    }
}

pub(crate) async fn grant(args: GrantArgs, output: Output) -> anyhow::Result<()> {
    let objects = args.objects();
    if args.dry_run {
        return print(&objects, output);
    }
    let cluster = Cluster::connect(&args.cluster, None).await?;
    check_installed(&cluster, &args.manager.manager_namespace).await?;
    check_namespaces(&cluster, &args.namespace).await?;
    for object in &objects {
        apply::apply_one(&cluster, object).await?;
    }

    let titles: Vec<String> = objects.iter().map(Object::title).collect();
    let granted = json!({
        "server": cluster.server(),
        "users": args.person.iter().collect::<Vec<_>>(),
        "groups": args.group,
        "namespaces": args.namespace,
        "intercept": args.intercept,
        "bindings": titles,
    });

    output.print(&granted, &sentence(&args, &titles))
}

fn sentence(args: &GrantArgs, bindings: &[String]) -> String {
    let names: Vec<&str> = args.subjects().map(|subject| subject.name).collect();

    let intercepts = match args.intercept {
        true => ", and intercept there",
        false => "",
    };

    format!(
        "{} may connect with `tp connect --namespace {}`{intercepts}.\nMade: {}\n",
        names.join(", "),
        args.namespace.join("`, `tp connect --namespace "),
        bindings.join(", "),
    )
}

/// Refuses if the roles are missing: the API server would accept the bindings silently.
async fn check_installed(cluster: &Cluster, namespace: &str) -> Result<(), Fault> {
    let role = Object::named(&format!("{RBAC}/v1"), "Role", Some(namespace), CONNECT_ROLE);
    let found: Option<DynamicObject> = role
        .api(cluster)
        .get_opt(role.name())
        .await
        .map_err(|error| cluster.fault(&format!("read {}", role.title()), &error))?;
    if found.is_some() {
        return Ok(());
    }
    let message = format!(
        "tp is not installed in the namespace {namespace} of {}: `tp install --image REF` installs \
         it, or name another one with --manager-namespace",
        cluster.server()
    );

    Err(Fault::new(FaultKind::NotInstalled, message))
}

/// Refuses if a namespace is missing: the command would fail after some bindings were made.
async fn check_namespaces(cluster: &Cluster, names: &[String]) -> Result<(), Fault> {
    let namespaces = Api::<Namespace>::all(cluster.client().clone());
    for name in names {
        // A user who may not read namespaces skips this check.
        if let Ok(None) = namespaces.get_opt(name).await {
            let message = format!(
                "there is no namespace {name} in {}: nothing was granted",
                cluster.server()
            );
            return Err(Fault::new(FaultKind::Failed, message));
        }
    }

    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use serde_json::Value;

    use super::*;
    use crate::cli::{Cli, Command};

    fn bindings(line: &str) -> Vec<Value> {
        let command = Cli::try_parse_from(line.split(' ')).unwrap().command;
        let Command::Grant(args) = command else {
            panic!("{command:?}");
        };

        args.objects().into_iter().map(|it| it.value).collect()
    }

    #[test]
    fn each_namespace_gets_a_binding_and_that_of_the_manager_the_last() {
        let made = bindings("tp grant alice@corp.test -n shop -n bank --manager-namespace m");

        let told: Vec<_> = made
            .iter()
            .map(|it| (&it["metadata"]["namespace"], &it["roleRef"]["name"]))
            .collect();
        let expected = [
            ("shop", "tp-user"),
            ("bank", "tp-user"),
            ("m", "tp-connect"),
        ];
        assert_eq!(told.len(), expected.len());
        for ((namespace, role), (expected_namespace, expected_role)) in told.iter().zip(expected) {
            assert_eq!(
                (*namespace, *role),
                (&json!(expected_namespace), &json!(expected_role))
            );
        }
        for it in &made {
            assert_eq!(it["subjects"][0]["kind"], "User");
            assert_eq!(it["subjects"][0]["name"], "alice@corp.test");
        }
    }

    #[test]
    fn intercepts_are_granted_only_where_they_are_asked_for() {
        let roles = |line: &str| -> Vec<String> {
            let made = bindings(line);
            made.iter()
                .map(|it| it["roleRef"]["name"].to_string())
                .collect()
        };

        let without = roles("tp grant alice -n shop -n bank");
        assert!(
            !without.contains(&"\"tp-intercept\"".to_owned()),
            "{without:?}"
        );
        let with = roles("tp grant alice -n shop -n bank --intercept");
        let granted = with.iter().filter(|it| *it == "\"tp-intercept\"").count();
        assert_eq!((granted, with.len()), (2, without.len() + 2));
    }

    #[test]
    fn bindings_are_labelled_as_those_of_tp() {
        for binding in bindings("tp grant alice -n shop") {
            let labels = &binding["metadata"]["labels"];
            assert_eq!(labels[manifests::MANAGED_BY], "tp", "{binding}");
        }
    }

    #[test]
    fn users_and_groups_of_one_name_have_bindings_of_their_own() {
        let made = bindings("tp grant ops --group ops --group a/b -n shop");

        let mut names: Vec<_> = made.iter().map(|it| &it["metadata"]["name"]).collect();
        assert_eq!(names.len(), 6);
        names.dedup();
        assert!(names.contains(&&json!("tp-use-group-a_b")), "{names:?}");
        assert!(names.contains(&&json!("tp-use-user-ops")), "{names:?}");
    }

    #[test]
    fn somebody_and_a_namespace_are_needed() {
        for line in ["tp grant -n shop", "tp grant alice"] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
