//! No secret is ever logged or told: everything that the process traces, at the finest level, is
//! captured while every RPC is called with marked secrets, and so is every answer.
//!
//! A program of its own, because only one can listen to a whole process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, also in its helpers"
)]
#![allow(dead_code, reason = "the helpers are shared with other tests")]

#[path = "../rpc/message.rs"]
mod message;
#[path = "../rpc/support.rs"]
mod support;
#[path = "../rpc/valid.rs"]
mod valid;

use larder_host::fake::FakeKernel;
use larder_model::{Fault, Kind};
use larder_proto::csi;
use larder_volumes::testing::Inject;
use message::{call, paths, with};
use prost_reflect::{DynamicMessage, MapKey, Value};
use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
};
use support::{Rig, devices, directories};
use tracing_subscriber::fmt::MakeWriter;

const MARKER: &str = "MARKED-hunter2";

/// Where logs go.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Captured {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn pair(key: &str, value: String) -> Value {
    Value::Map(HashMap::from([(MapKey::String(key.to_owned()), Value::String(value))]))
}

/// The valid request with a mark wherever a credential may stand, and what is wrong with it.
fn marked(valid: &DynamicMessage) -> Vec<(String, DynamicMessage)> {
    let mut all = Vec::new();
    let mut everywhere = valid.clone();
    for (path, field) in paths(valid) {
        let name = field.name();
        let wrong: Vec<Value> = match name {
            "secrets" => vec![
                pair("password", MARKER.to_owned()),
                pair("password", format!("{MARKER}\0")),
                pair("password", MARKER.repeat(10_000)),
                pair("not allowed", MARKER.to_owned()),
                pair("csi.storage.k8s.io/serviceAccount.tokens", MARKER.to_owned()),
            ],
            "mount_flags" => [
                format!("password={MARKER}"),
                format!("{MARKER}\n"),
                format!("x,password={MARKER},y"),
                MARKER.repeat(1000),
            ]
            .into_iter()
            .map(|flag| Value::List(vec![Value::String(flag)]))
            .collect(),
            "volume_context" => {
                let key = "csi.storage.k8s.io/serviceAccount.tokens";
                vec![
                    pair(key, MARKER.to_owned()),
                    pair(key, format!("{MARKER}\0")),
                    pair(key, MARKER.repeat(10_000)),
                ]
            }
            _ => continue,
        };
        everywhere = with(&everywhere, &path, wrong[0].clone());
        all.extend(wrong.into_iter().map(|value| (path.clone(), with(valid, &path, value))));
    }
    all.push(("everywhere".to_owned(), everywhere));
    all
}

#[tokio::test]
async fn no_secret_is_logged_or_told() {
    let captured = Captured::default();
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .with_writer(captured.clone())
        .init();
    let kernel = FakeKernel::new();
    let rigs = [Rig::filled(directories()).await, {
        let rig = Rig::with(devices(&kernel), kernel, |_| {}).started().await;
        rig.fill().await;
        rig
    }];
    let mut calls = 0;
    for rig in &rigs {
        for (client, all) in [(rig.driver.client(), true), (rig.remote().await, false)] {
            for method in csi::METHODS {
                let mut requests = marked(&valid::request(method.name, rig.folder()));
                // The transport's own traces are long: once is enough for them.
                let skipped = if all { 0 } else { requests.len() - 1 };
                for (path, request) in requests.drain(skipped..) {
                    calls += 1;
                    let answer = call(&client, method, &request).await;
                    let told = format!("{answer:?}");
                    // What a caller wrote into a context it gets back; nothing else.
                    let repeats = method.name == "ValidateVolumeCapabilities" && answer.is_ok();
                    assert!(repeats || !told.contains(MARKER), "{} {path}: {told}", method.name);
                    let logged = captured.take();
                    assert!(logged.contains(method.name), "{} is traced: {logged}", method.name);
                    // So are the driver, the node and the volume, by which people search.
                    if method.name == "DeleteVolume" {
                        for field in ["driver=memory.test", "node=node-1", "volume=default/gone"] {
                            assert!(logged.contains(field), "{field}: {logged}");
                        }
                    }
                    let line = logged.lines().find(|line| line.contains(MARKER));
                    assert!(line.is_none(), "{} {path} logs {line:?}", method.name);
                }
            }
        }
        // Faults on the way.
        for (rpc, backend) in [("CreateVolume", "ensure_volume"), ("NodeStageVolume", "connect")] {
            let fault = Fault::new(Kind::Unauthenticated, "log in to the storage");
            rig.backend.inject(backend, Inject::Fail(fault));
            let valid = valid::request(rpc, rig.folder());
            let (_, request) = marked(&valid).pop().unwrap();
            let answer = call(&rig.driver.client(), message::method(rpc), &request).await;
            assert!(!format!("{answer:?}{}", captured.take()).contains(MARKER));
        }
    }
    assert!(calls > 300, "{calls}");
}
