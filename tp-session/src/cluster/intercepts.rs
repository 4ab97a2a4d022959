//! The Intercept objects of the user.

use kube::{
    Api,
    api::{DeleteParams, PostParams, Preconditions},
};
use tokio::time::timeout;
use tp_proto::{
    crd::{Intercept, InterceptSpec, UserInfo},
    fault::Fault,
};

use super::{Cluster, Deletion, Operation, REQUEST_TIMEOUT, api_fault, faults};

/// An Intercept in the cluster.
pub(in super::super) struct FoundIntercept {
    pub(in super::super) uid: String,
    /// The UID of its Session.
    pub(in super::super) session: String,
}

impl Cluster {
    /// Creates an Intercept as `user`, who replaces the one in `spec`; returns its UID.
    pub(in super::super) async fn create_intercept(
        &self,
        namespace: &str,
        name: &str,
        spec: &InterceptSpec,
        user: &UserInfo,
    ) -> Result<String, Fault> {
        let api = self.intercepts(namespace);
        let make = |user| {
            let spec = InterceptSpec {
                user,
                ..spec.clone()
            };
            let (api, object) = (api.clone(), Intercept::new(name, spec));
            async move { api.create(&PostParams::default(), &object).await }
        };
        let operation = Operation::CreateIntercept(namespace.to_owned());
        let made = self.create(operation, user, make).await?;

        Ok(made.metadata.uid.unwrap_or_default())
    }

    /// The Intercept of this name, if there is one that is not being deleted.
    pub(in super::super) async fn find_intercept(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<FoundIntercept>, Fault> {
        let api = self.intercepts(namespace);
        let operation = Operation::ReadIntercept(namespace.to_owned());
        let found = self.ask(operation, api.get_opt(name)).await?;
        let found = found.filter(|it| it.metadata.deletion_timestamp.is_none());

        Ok(found.map(|it| FoundIntercept {
            uid: it.metadata.uid.unwrap_or_default(),
            session: it.spec.session.uid,
        }))
    }

    /// Deletes this Intercept, and no other of its name.
    pub(in super::super) async fn delete_intercept(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<Deletion, Fault> {
        let api = self.intercepts(namespace);
        let how = DeleteParams::default().preconditions(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        });
        match timeout(REQUEST_TIMEOUT, api.delete(name, &how)).await {
            Ok(Ok(_)) => Ok(Deletion::Done),
            // With 409 there is another one of this name.
            Ok(Err(kube::Error::Api(status))) if [404, 409].contains(&status.code) => {
                Ok(Deletion::Absent)
            }
            Ok(Err(error)) => {
                let operation = Operation::DeleteIntercept(namespace.to_owned());
                Err(api_fault(&operation, &self.destination, error))
            }
            Err(_) => Err(faults::silent(&self.destination, REQUEST_TIMEOUT)),
        }
    }

    /// Returns whether the API server says that there is no such Intercept, or no longer.
    pub(in super::super) async fn lacks_intercept(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> bool {
        let api = self.intercepts(namespace);
        match timeout(REQUEST_TIMEOUT, api.get_metadata_opt(name)).await {
            Ok(Ok(None)) => true,
            Ok(Ok(Some(found))) => {
                found.metadata.deletion_timestamp.is_some()
                    || found.metadata.uid.as_deref() != Some(uid)
            }
            _ => false,
        }
    }

    fn intercepts(&self, namespace: &str) -> Api<Intercept> {
        Api::namespaced(self.client.clone(), namespace)
    }
}
