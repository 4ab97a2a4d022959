//! The Intercept objects of the user.

use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use tokio::time::timeout;
use tp_proto::{
    crd::{Intercept, InterceptSpec, UserInfo},
    fault::Fault,
};

use super::{Cluster, Deletion, Operation, REQUEST_TIMEOUT, api_fault, faults};

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

    pub(in super::super) async fn delete_intercept(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Deletion, Fault> {
        let (api, how) = (self.intercepts(namespace), DeleteParams::default());
        match timeout(REQUEST_TIMEOUT, api.delete(name, &how)).await {
            Ok(Ok(_)) => Ok(Deletion::Done),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(Deletion::Absent),
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
