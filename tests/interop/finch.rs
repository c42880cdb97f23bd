//! finch, libpurple's client for terminals. tmux types the keys and reads the screen, as a person would.

use std::{fs, path::Path, process::Command, time::Duration};

use crate::support::{
    has,
    peer::{run, text},
    route::{Hop, Route},
};

/// Whether finch and tmux are installed.
pub fn is_there() -> bool {
    has("finch", "finch") && has("tmux", "tmux")
}

/// The file with the account with which finch logs in at its start, by `route`.
fn account(route: &Route) -> String {
    let target = if route.hop.is_some() { route.target } else { route.to };
    // finch passes host names on to the proxy unchanged.
    let server = if route.hop == Some(Hop::Socks5Name) { "localhost".to_owned() } else { target.ip().to_string() };
    let kind = match route.hop {
        None => "none",
        Some(Hop::Connect) => "http",
        Some(Hop::Socks4) => "socks4",
        Some(Hop::Socks5 | Hop::Socks5Name) => "socks5",
    };
    let login = route.login.as_ref().map_or_else(String::new, |(user, password)| {
        format!("<username>{user}</username><password>{password}</password>")
    });
    format!(
        "<?xml version='1.0' encoding='UTF-8' ?>\n<account version='1.0'><account><protocol>prpl-meanwhile</protocol>\
         <name>fred</name><password>secret</password>\
         <settings><setting name='server' type='string'>{server}</setting>\
         <setting name='port' type='int'>{}</setting></settings>\
         <settings ui='gnt-purple'><setting name='auto-login' type='bool'>1</setting></settings>\
         <proxy><type>{kind}</type><host>{}</host><port>{}</port>{login}</proxy></account></account>\n",
        target.port(),
        route.to.ip(),
        route.to.port(),
    )
}

const BUDDIES: &str = "<?xml version='1.0' encoding='UTF-8' ?>\n<purple version='1.0'><blist><group name='Buddies'>\
    <contact><buddy account='fred' proto='prpl-meanwhile'><name>echo</name></buddy></contact></group></blist></purple>\n";

/// A terminal in tmux, which ends when this value is dropped.
struct Terminal {
    socket: String,
}

impl Terminal {
    async fn open(folder: &Path, command: &str) -> Self {
        let terminal = Self { socket: folder.join("tmux").display().to_string() };
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", command]).await;
        terminal
    }

    async fn tmux(&self, arguments: &[&str]) -> String {
        text(&run(Command::new("tmux").args(["-S", &self.socket]).args(arguments)).await.stdout)
    }

    /// Waits until `words` are on the screen.
    async fn wait_for(&self, words: &str) {
        let mut screen = String::new();
        for _ in 0..300 {
            screen = self.tmux(&["capture-pane", "-p"]).await;
            if screen.contains(words) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{words:?} did not appear on the screen:\n{screen}");
    }

    async fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]).await;
    }

    /// Types `words` and waits until they are on the screen.
    async fn type_in(&self, words: &str) {
        self.tmux(&["send-keys", "-l", words]).await;
        self.wait_for(words).await;
    }

    async fn is_open(&self) -> bool {
        !self.tmux(&["list-sessions"]).await.is_empty()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("tmux").args(["-S", &self.socket, "kill-server"]).output();
    }
}

/// Logs in by `route`, waits until `echo` is online, chats with it, and quits.
pub async fn chat(route: &Route, folder: &Path) {
    let folder = folder.join("finch");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("accounts.xml"), account(route)).unwrap();
    fs::write(folder.join("blist.xml"), BUDDIES).unwrap();
    let command = format!("TERM=xterm finch -c {}", folder.display());
    let terminal = Terminal::open(&folder, &command).await;
    // Only buddies that are online are shown.
    terminal.wait_for(" echo").await;
    // Opens the menu and chooses its first entry.
    terminal.press("C-o").await;
    terminal.wait_for("Send IM...").await;
    terminal.press("Enter").await;
    terminal.wait_for("New Instant Message").await;
    terminal.type_in("echo").await;
    terminal.press("Tab").await;
    terminal.press("Enter").await;
    terminal.wait_for("echo (fred").await;
    terminal.type_in("hello from finch").await;
    terminal.press("Enter").await;
    terminal.wait_for("echo: hello from finch").await;
    terminal.press("M-q").await;
    for _ in 0..300 {
        if !terminal.is_open().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("finch did not quit");
}
