use std::pin::pin;

use futures::poll;

use tokio::time::timeout;

use super::*;

#[tokio::test]
async fn a_session_ends_though_whoever_asked_for_it_has_gone_meanwhile() {
    let stop = CancellationToken::new();
    let service = Service::new(stop.clone());
    let existing = {
        let mut state = service.state.lock().await;
        state.enter(1);
        state.join(1, &ConnectRequest::default())
    };
    let Existing::Nothing(attempt) = existing else {
        panic!("there is something already");
    };

    {
        let mut asked = pin!(service.end());
        assert!(poll!(&mut asked).is_pending());
    }
    attempt.over.cancel();

    timeout(Duration::from_secs(10), stop.cancelled())
        .await
        .expect("the process may end");
}
