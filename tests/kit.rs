//! The conformance kit's two examples, as `docs/testing.md` shows them.
#![allow(clippy::unwrap_used)]

mod support;

use sametime_mux::net::Section;
use support::{
    client::{Client, Way},
    community::{Community, Connection},
    frames::{self, Frame},
    mux,
};

// Against the sandbox, over every transport.
#[tokio::test]
async fn echo_answers() {
    let mux = mux::start("").await;
    for way in Way::ALL {
        let mut client = Client::connect(way, mux.port(Section::HttpTunneledClientConnections)).await;
        client.log_in("bob").await;
        let channel = client.open_chat("echo").await;
        client.say(channel, b"hello").await;
        assert_eq!(client.recv().await.unwrap().text(), b"hello", "{way:?}");
    }
}

// With a Community server that does what the test says.
async fn turns_away(mut connection: Connection) {
    connection.let_in().await;
    connection.send(&Frame::new(frames::DESTROY, 0, &[0x80, 0, 2, 0x11, 0, 0, 0, 0]).bytes()).await;
}

#[tokio::test]
async fn the_communitys_last_word_arrives() {
    let community = Community::start(turns_away).await;
    let mux = mux::start(&community.setting()).await;
    let mut client = Client::connect(Way::Polling, mux.raw()).await;
    client.log_in("bob").await;
    assert_eq!(client.recv().await.unwrap().reason(), 0x8000_0211);
    assert!(client.recv().await.is_none(), "then the end");
}
