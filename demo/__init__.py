"""Two demos: a real engine and the agent on this machine, a ConfigMap that is edited, and proof.

Development only, as the lab that they are made of. Every step is checked: a demo that ends with
exit code 0 has seen everything happen that it says.
"""
