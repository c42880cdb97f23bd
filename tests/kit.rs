//! The two examples of the test kit that `docs/testing.md` shows.
#![allow(clippy::unwrap_used)]

mod support;

use sametime_mux::net::Section;
use support::{
    client::{Client, Transport},
    community::{Community, Connection},
    frames::{self, Frame},
    mux,
};

// Against the sandbox, over every transport.
#[tokio::test]
async fn echo_answers() {
    let mux = mux::start("").await;
    for transport in Transport::ALL {
        let mut client = Client::connect(transport, mux.port(Section::HttpTunneledClientConnections)).await;
        client.log_in("bob").await;
        let channel = client.open_chat("echo").await;
        client.send_text(channel, b"hello").await;
        assert_eq!(client.recv().await.unwrap().text(), b"hello", "{transport:?}");
    }
}

// With a Community server that follows a script of the test.
async fn refuse(mut connection: Connection) {
    connection.accept_login().await;
    connection.send(&Frame::new(frames::DESTROY, 0, &[0x80, 0, 2, 0x11, 0, 0, 0, 0]).bytes()).await;
}

#[tokio::test]
async fn the_farewell_message_of_the_community_arrives() {
    let community = Community::start(refuse).await;
    let mux = mux::start(&community.setting()).await;
    let mut client = Client::connect(Transport::Polling, mux.raw()).await;
    client.log_in("bob").await;
    assert_eq!(client.recv().await.unwrap().reason(), 0x8000_0211);
    assert!(client.recv().await.is_none(), "then the end");
}
