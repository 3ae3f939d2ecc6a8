//! Chains of the assistants equal transformers' within the fixtures' tolerances, step by step.

use gemma4::DType;
use gemma4_tests::golden_draft::{check_draft, draft_fixtures};
use gemma4_tests::repo;

#[test]
fn chains_of_assistants() {
    let fixtures = draft_fixtures(&repo("tests/data/golden")).unwrap();
    assert_eq!(fixtures.len(), 3);
    let mut checked = 0;
    for fixture in &fixtures {
        for kv in [DType::F32, DType::F16] {
            for ordered in [false, true] {
                if ordered && !fixture.has_centroids {
                    continue;
                }
                let report = check_draft(fixture, kv, ordered).unwrap();
                println!("{report:?}");
                assert!(report.passes(), "{report:#?}");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 8);
}
