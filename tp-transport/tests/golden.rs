//! The preface of path T, to the byte: clients and managers one minor version apart must read each
//! other's.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tp_transport::{
    Admission, AttachError, ConnectError, Identity, KeyHash, PathChoice, Refusal, SessionRef,
    Tunnel, TunnelConfig, TunnelServer,
};

const LIMIT: Duration = Duration::from_secs(20);

/// Magic, version, then namespace, name and UID, each behind its length.
const PREFACE: &[u8] = b"tp-T\x01\x04shop\x05alice\x246f1c7b0a-0000-4000-8000-000000000001";
/// Version, refusal, length of the reason, reason.
const REFUSAL: &[u8] = b"\x01\x01\x00\x18there is no such session";

struct Nobody;

impl Admission for Nobody {
    fn known(&self, _: &SessionRef) -> Result<(), Refusal> {
        Err(Refusal::new("there is no such session"))
    }

    fn admit(&self, _: &SessionRef, _: &KeyHash) -> Result<(), Refusal> {
        Err(Refusal::new("nobody is admitted"))
    }
}

#[tokio::test]
async fn a_client_sends_this_preface_and_reads_this_refusal() {
    let (near, mut far) = tokio::io::duplex(64 << 10);
    let config = TunnelConfig {
        identity: Identity::generate().unwrap(),
        session: SessionRef {
            namespace: "shop".into(),
            name: "alice".into(),
            uid: "6f1c7b0a-0000-4000-8000-000000000001".into(),
        },
        manager_key: Identity::generate().unwrap().key_hash(),
        choice: PathChoice::Auto,
    };
    let manager = async {
        let mut preface = vec![0; PREFACE.len()];
        far.read_exact(&mut preface).await.unwrap();
        far.write_all(REFUSAL).await.unwrap();
        preface
    };

    let both = async { tokio::join!(Tunnel::connect(near, config), manager) };
    let (connected, preface) = timeout(LIMIT, both).await.unwrap();

    assert_eq!(preface, PREFACE);
    let error = connected.map(drop).unwrap_err();
    assert!(
        matches!(&error, ConnectError::Refused(reason) if reason == "there is no such session"),
        "{error}"
    );
}

#[tokio::test]
async fn a_manager_reads_this_preface_and_sends_this_refusal() {
    let server = TunnelServer::bind(None, Identity::generate().unwrap(), Arc::new(Nobody)).unwrap();
    let (mut near, far) = tokio::io::duplex(64 << 10);
    near.write_all(PREFACE).await.unwrap();

    let answer = async {
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let both = async { tokio::join!(server.attach(far), answer) };
    let (attached, answer) = timeout(LIMIT, both).await.unwrap();

    assert_eq!(answer, REFUSAL);
    assert!(matches!(attached, Err(AttachError::Refused(_))));
}
