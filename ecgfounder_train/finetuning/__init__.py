"""Fine-tuning: a pretrained network, a table of answers, and a test reported once at the end.

`task` says what is asked, `table` reads the answers, `task_shards` brings them together with
signals, `starting_point` says where weights come from. `probe` fits a head on frozen features,
`module` trains all weights; both end in the checkpoint of an ordinary run. `outcome` reports the
test split, `label_efficiency` how much is learnt from how little. Start at `session.finetune`.
"""
