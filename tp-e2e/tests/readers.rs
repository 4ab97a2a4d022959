//! Programs that stop reading stall only themselves.

use std::time::{Duration, Instant};

use tp_e2e::{
    readers::{StalledDownloads, StalledUploads},
    user::Account,
    workstation::Workstation,
};

const STALLED: u64 = 200;
/// In total more than a session buffers, and less than the one kernel of all machines here has for
/// TCP: beyond that it stalls connections by itself (`tcp_mem`, tcp(7)).
const SIZE: u64 = 2 << 20;
const BEYOND: &str = "10.77.0.2";
/// For commands of a user.
const AT_ONCE: Duration = Duration::from_secs(1);
const TRANSFERS: Duration = Duration::from_secs(150);

#[test]
fn with_200_stalled_downloads_and_200_stalled_uploads_all_else_answers_at_once_and_they_go_on() {
    let beyond = format!("{BEYOND}/32");
    let workstation =
        Workstation::connected(Account::Member, "admin", "shop", &["--also-proxy", &beyond]);
    workstation.reaches_again(AT_ONCE * 10);
    let downloads = StalledDownloads::start(&workstation, STALLED, SIZE);
    let uploads = StalledUploads::start(&workstation, BEYOND, STALLED, SIZE);

    assert_ends_at_once(&workstation, &["curl", "-sS", "http://web/"]);
    assert_ends_at_once(&workstation, &["getent", "ahostsv4", "cell-0.cells.shop"]);
    assert_ends_at_once(&workstation, &["tp", "list"]);
    assert_ends_at_once(&workstation, &["tp", "status"]);

    uploads.read_all(TRANSFERS);
    downloads.read_all(TRANSFERS);
}

#[track_caller]
fn assert_ends_at_once(workstation: &Workstation, words: &[&str]) {
    let begun = Instant::now();
    workstation.run(words).expect_success();
    let took = begun.elapsed();

    assert!(took < AT_ONCE, "{words:?} took {took:?}");
}
