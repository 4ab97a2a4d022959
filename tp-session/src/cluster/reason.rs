//! The reason why a pod is not ready, from its status.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| &status.conditions);

    conditions
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

pub(super) fn of(pod: &Pod) -> String {
    let Some(status) = &pod.status else {
        return "it has no status yet".to_owned();
    };
    let containers = status.container_statuses.iter().flatten();
    if let Some(reason) = containers
        .filter(|container| !container.ready)
        .find_map(container)
    {
        return reason;
    }
    let unmet = status.conditions.iter().flatten().find(|condition| {
        condition.status != "True" && condition.message.as_ref().is_some_and(|it| !it.is_empty())
    });
    if let Some(condition) = unmet {
        return format!(
            "{}: {}",
            condition.type_,
            condition.message.clone().unwrap_or_default()
        );
    }

    status
        .reason
        .clone()
        .or_else(|| status.phase.clone())
        .unwrap_or_else(|| "unknown".to_owned())
}

fn container(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    let last = container
        .last_state
        .as_ref()
        .and_then(|last| last.terminated.as_ref());
    if let Some(waiting) = &state.waiting {
        let words = [&waiting.reason, &waiting.message].into_iter().flatten();
        let words: Vec<&str> = words
            .map(String::as_str)
            .filter(|it| !it.is_empty())
            .collect();
        let exit = last
            .map(|last| format!(" (exit code {})", last.exit_code))
            .unwrap_or_default();
        return Some(format!("{}{exit}", words.join(": ")));
    }
    state.terminated.as_ref().map(|it| {
        format!(
            "{} (exit code {})",
            it.reason.clone().unwrap_or_default(),
            it.exit_code
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_image_is_named() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "status": {"phase": "Pending", "containerStatuses": [{
                "name": "manager", "ready": false, "restartCount": 0, "image": "x", "imageID": "",
                "state": {"waiting": {"reason": "ErrImageNeverPull", "message": "image x is not present"}}
            }]}
        }))
        .unwrap();

        assert_eq!(of(&pod), "ErrImageNeverPull: image x is not present");
    }

    #[test]
    fn a_container_that_is_being_made_has_no_more_to_say() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "status": {"phase": "Pending", "containerStatuses": [{
                "name": "manager", "ready": false, "restartCount": 0, "image": "x", "imageID": "",
                "state": {"waiting": {"reason": "ContainerCreating"}}
            }]}
        }))
        .unwrap();

        assert_eq!(of(&pod), "ContainerCreating");
    }
}
