//! What a pending job costs. In a binary of its own: it counts what is allocated.

#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

mod common;

use jobs::{Jobs, Message, PipelineHandle};

const JOBS: i64 = 100_000;
const PAYLOAD: i64 = 100;

async fn push_all(pipeline: &PipelineHandle) {
    for _ in 0..JOBS / 100 {
        let batch = (0..100).map(|_| Message::new("x", vec![b'p'; PAYLOAD as usize])).collect();
        assert!(pipeline.push_batch(batch).await.iter().all(Result::is_ok));
    }
}

#[test]
fn a_pending_job_costs_its_payload_and_less_than_a_kibibyte() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = Jobs::builder().pipeline(common::memory("a")).consume(["a"]);
    let jobs = runtime.block_on(config.connect()).unwrap();
    let a = jobs.pipeline("a").unwrap();
    let change = allocation_counter::measure(|| runtime.block_on(push_all(&a)));
    let state = runtime.block_on(a.state()).unwrap();
    assert_eq!(state.active, JOBS as u64, "all wait in this process");
    let each = change.bytes_current / JOBS;
    assert!((PAYLOAD..=PAYLOAD + 1024).contains(&each), "{each} bytes a job");
    runtime.block_on(jobs.shutdown()).unwrap();
}
